"""Changes of HAProxy's servers over the API."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ratelimit.api.servers import ServerChange


@pytest.mark.parametrize("weight", [-1, 257, True, "1;clear table t_block"])
def test_a_weight_is_a_number_that_haproxy_takes(weight: object) -> None:
    with pytest.raises(ValidationError, match="weight"):
        ServerChange.model_validate({"weight": weight})
