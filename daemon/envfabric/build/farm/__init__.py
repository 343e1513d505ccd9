"""The build farm: staging folders are filled by tasks of a Ray cluster, on nodes that mount ROOT.

Four processes take part. The daemon (`executor`, `link`) imports no ray: a child of it does (`driver`), which is
the cluster's job and may die with the cluster. On a node a Ray worker (`node`) starts a process of its own for
each build (`hand`), which is looked at for fitness (`fitness`) and does what the daemon would do (build/filling).
Each ends when the one before it is gone. What they say to each other stands in `words`.
"""
