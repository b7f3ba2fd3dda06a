"""The forecast: what falls due in the next minutes, against what the workers can do."""

from typing import Any

from app import actors, db, forecast
from app.forecast import outlook
from web import auth, forecasts
from web.blueprint import Blueprint

Fields = dict[str, Any]

blp = Blueprint("forecast", "What is to come.")


@blp.serves("GET", "/forecast")
@blp.takes(forecasts.ForecastQuerySchema, "query")
@blp.gives(200, forecasts.OutlookSchema)
def show(wanted: Fields) -> Fields:
    """Tells what falls due in each minute of the next day, which runs would start late, and what would mend it."""
    minutes, queue = wanted["minutes"], wanted.get("queue")
    with auth.transaction() as session:
        known = forecast.read(session, db.now(session), minutes)
        actor = actors.of(session)
    found = forecast.look(known, minutes)
    late = [spell for spell in outlook.spells(found) if queue in (None, spell.queue)]
    told = forecast.troubles(found, late)
    with auth.transaction() as session:
        examples = forecast.examples(session, found, told)
    confined = actor is not None and actor.is_confined
    return forecasts.dumped(found, told, examples, queue, confined=confined, more=len(late) - len(told))
