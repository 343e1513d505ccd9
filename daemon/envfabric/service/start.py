"""What is looked at before a turn as the writer, and told in words: the settings' gaps, the commit to begin with.

Reads the repository and ROOT; writes nothing.
"""

from typing import TypeVar

from envfabric.core.errors import ConfigError, StoreError
from envfabric.service.settings import Settings
from envfabric.specs.repository import Repository, SourceError
from envfabric.store.prepare import check_source
from envfabric.store.root import Root

T = TypeVar("T")


def first_commit(repository: Repository, root: Root, *, remote: bool, adopt: bool) -> str:
    """The commit to begin with; `remote` where the repository is a remote's mirror.

    Raises `ConfigError` where a local repository has none, or ROOT serves another one (allowed by `adopt`), and
    `SourceError`.
    """
    commit = repository.head()
    if commit is None:
        if remote:
            raise SourceError(f"the mirror {repository.path} has no commit")
        branch = repository.branch
        what = f"no branch {branch!r} with a commit" if branch else "no commit yet"
        raise ConfigError(f"{repository.path} has {what}; commit a spec first.")
    # A commit that removed the folder is one that removes all specs, and held back as such. Where nothing is
    # published yet, the folder's name is a mistake.
    if not repository.has_spec_path(commit) and not root.index.exists():
        raise SourceError(
            f"{repository.spec_path} is no folder in commit {commit[:12]} of {repository.path}; give --path the "
            "folder with the specs"
        )
    if not adopt:
        check_source(root, repository.root_commits(commit), repository.spec_path)
    return commit


def writing(root: Root, epoch: int) -> str:
    """What a writer does now, in words: nothing, while ROOT is away."""
    try:
        root.require_marker()
    except (StoreError, OSError) as error:
        return f"waiting: {error}"
    return f"writing, epoch {epoch}"


def token_of(settings: Settings) -> str | None:
    """What a request for a look has to carry."""
    return settings.reconcile_token.get_secret_value() if settings.reconcile_token else None


def required(value: T | None, name: str, what: str) -> T:
    """The setting's value. Raises `ConfigError` where it is not given."""
    if value is None:
        raise ConfigError(
            f"{what} is not given: use --{name}, ENVFABRIC_{name.upper()} or {name} in envfabric.toml"
        )
    return value
