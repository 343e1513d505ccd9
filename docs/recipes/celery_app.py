"""One Celery queue for each environment, with workers that were started in it.

On a machine that has the NAS, a worker for each environment that it is to serve:

    python run_in_environment.py reports/daily -m celery -A celery_app worker -Q reports.daily -n daily@%h
    python run_in_environment.py reports/legacy -m celery -A celery_app worker -Q reports.legacy -n legacy@%h

The environments need celery. Who sends tasks needs celery and this file, and nothing of what tasks import:

    celery_app.in_words.apply_async((1234567,), queue="reports.daily")

A worker stays in the generation that it was started in, which its lease keeps: start it anew for a newer one.
"""

import sys

from celery import Celery

app = Celery("recipes")
# A module of yours, on PYTHONPATH, with broker_url and result_backend.
app.config_from_object("celeryconfig")


@app.task(name="in_words")
def in_words(number: int) -> dict[str, str]:
    # Imported here: senders don't have it.
    import humanize

    return {"words": humanize.intcomma(number), "version": humanize.__version__, "where": sys.prefix}
