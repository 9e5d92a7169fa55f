"""The tasks, for the worker and for who calls them: CELERY_URL names broker and result store."""

import os
import time

from celery import Celery

app = Celery("tasks", broker=os.environ["CELERY_URL"] + "/0", backend=os.environ["CELERY_URL"] + "/1")
app.conf.update(
    broker_connection_retry_on_startup=True,
    result_expires=600,
    task_track_started=True,
    worker_send_task_events=True,
    worker_hijack_root_logger=False,
    result_chord_retry_interval=0.05,
)


@app.task
def add(a, b):
    return a + b


@app.task
def total(numbers):
    return sum(numbers)


@app.task(bind=True, max_retries=3, default_retry_delay=0.05)
def third_time(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0.05)
    return self.request.retries


@app.task
def fail():
    raise ValueError("on purpose")


@app.task
def slow(seconds):
    time.sleep(seconds)
    return "slept"
