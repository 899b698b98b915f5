"""The same service on FastAPI::

    uvicorn fastapi_app:app --host 0.0.0.0 --port 8080 --timeout-graceful-shutdown 25

Routes that use the pool are plain functions: FastAPI runs them in threads, and its
event loop waits for none of them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pg8000.exceptions
import work
from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

import fastpool
from fastpool.ops import probes

pool = fastpool.from_env(name="orders")
health = probes(pool)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await run_in_threadpool(pool.open, wait=True)  # uvicorn listens when this has returned
    health.set_ready()
    try:
        yield
    finally:  # uvicorn accepts no more, and its requests have ended
        health.set_ready(False)
        await run_in_threadpool(pool.close, 5.0)
        health.close()


app = FastAPI(lifespan=lifespan)


@app.get("/databases")
def databases() -> list[dict[str, Any]]:
    return work.databases(pool)


@app.get("/report")
def report(
    seconds: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 1.0,
) -> dict[str, Any]:
    return work.report(pool, seconds)


@app.exception_handler(fastpool.PoolError)
@app.exception_handler(pg8000.exceptions.Error)
async def away(request: Request, error: Exception) -> JSONResponse:
    if not work.is_away(error):
        raise error
    return JSONResponse(work.AWAY, 503)


app.mount("/", health.asgi)  # last: what no route above is for
