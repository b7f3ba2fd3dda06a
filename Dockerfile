# One image for every process of the Procfile; compose and others say which one to run. `--target backup` makes another
# one, which backs up and restores.
FROM python:3.13.11-slim-trixie AS build
COPY requirements/main.txt /tmp/main.txt
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/main.txt \
    && /opt/venv/bin/pip uninstall --yes pip

FROM python:3.13.11-slim-trixie AS processes
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin punctual
COPY --from=build /opt/venv /opt/venv
WORKDIR /srv/punctual
COPY alembic.ini ./
COPY alembic alembic/
COPY app app/
COPY beat beat/
COPY cli cli/
COPY web web/
COPY workers workers/
RUN python -m compileall -q .
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000 5555
CMD ["gunicorn", "--config", "python:web.server", "web.main:app"]

# PostgreSQL's own programs, of the version of compose's server or newer.
FROM processes AS backup
USER root
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql-client-17 \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=10001 --group=10001 --mode=0700 /backups
COPY Procfile ./
COPY deploy deploy/
RUN python -m compileall -q deploy
USER 10001:10001
CMD ["python", "-m", "deploy.backup", "/backups"]

# The last one is made where no target is named.
FROM processes
