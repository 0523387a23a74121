"""What does not follow a model's layers over several devices says so before it starts."""

from replacement_models import ReplacementModel
from tracer.errors import TraceError


def on_one_device(model: ReplacementModel, what: str) -> None:
    """Refuse a model over several devices.

    Args:
        model: the model.
        what: names the call.

    Raises:
        TraceError: it stands on more than one.
    """
    devices = model.host.devices
    if len(devices) > 1:
        raise TraceError(
            f"{what}: the model is spread over {', '.join(map(str, devices))}, and {what} does not "
            "follow its layers: load it on one device, without device_map"
        )
