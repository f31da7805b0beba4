"""A model behind FastAPI, as most teams would write it: 48 numbers in JSON, LightGBM's own predict, one uvicorn worker.

The caller sends the features: the service looks up no profile and keeps nothing. Its endpoint is async, because a
thread pool would cost more.

    python -m perf.peers.baseline_fastapi MODEL          prints its address, serves until SIGTERM
"""

# No postponed annotations: FastAPI reads them.

import socket
import sys

import lightgbm
import numpy as np
import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import BaseModel


class Payment(BaseModel):
    """The body of a request."""

    features: list[float]


class Scored(BaseModel):
    """The body of an answer."""

    score: float


def application(model_file: str) -> FastAPI:
    """Return the service with this model."""
    booster = lightgbm.Booster(model_file=model_file)
    app = FastAPI()

    @app.post("/score")
    async def score(payment: Payment) -> Scored:
        row = np.array(payment.features).reshape(1, -1)
        return Scored(score=float(booster.predict(row, num_threads=1)[0]))

    @app.get("/readyz")
    async def ready() -> str:
        return "ready"

    return app


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        application(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )
    uvloop.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
