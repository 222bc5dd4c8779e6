"""/openapi.json is what the server does: requests made from it never find a server error or an answer it does not tell."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.api_client import app_for
from tests.support.fake_pipeline import FakePipeline
from tests.support.served_model import EOS

EXAMPLES = 20  # of each route: bounds the time; ten times as many found nothing more

# The model answers at once whatever it is asked for, so that what is tested is how it is asked.
schema = schemathesis.openapi.from_asgi("/openapi.json", app_for(FakePipeline([*"né".encode(), EOS])))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_requests_made_from_the_schema_get_the_answers_it_tells(case: schemathesis.Case) -> None:
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = "tiny"  # else nearly every request would end at an unknown model
        case.body.pop("timeout", None)  # 504 is the right answer to a deadline of a nanosecond
    response = case.call()
    case.validate_response(
        response,
        checks=[
            schemathesis.checks.not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )
