"""Hundreds of beats on a simulated clock: their code is the real one, stores and links are models. See decision 41.

Nobody is spoken to. The code that runs reads the stores' addresses all the same.
"""

import os

for _name, _nowhere in {
    "DATABASE_URL": "postgresql+psycopg://nowhere/punctual",
    "REDIS_URL": "redis://nowhere",
    "BROKER_URL": "amqp://nowhere",
}.items():
    os.environ.setdefault(_name, _nowhere)
