"""Makes failed assertions in `cells` show their values."""

import pytest

pytest.register_assert_rewrite("compatibility.cells")
