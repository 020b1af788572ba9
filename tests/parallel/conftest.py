from devices.conftest import leaves_no_thread_behind  # noqa: F401
from devices.inputs import use_repeatable_profile

use_repeatable_profile()
