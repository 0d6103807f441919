"""What devices run: who they are, what was released for them, and where they fetch it.

Takes a release that the gate allowed; gives devices the latest one for each model. Does not decide what is released.
"""

from everswarm.server.fleet.service import (
    current_base,
    enrol_device,
    latest_release,
    mobile_models,
    publish_release,
    set_base,
)

__all__ = ["current_base", "enrol_device", "latest_release", "mobile_models", "publish_release", "set_base"]
