"""In what size a camera's frames travel, and where a person should be told of it."""

# Height and width in pixels
type Size = tuple[int, int]

# A camera of 1080p, and one of 16:10. Of larger frames a policy that scales nothing makes seconds of work for those
# that share it
MAX_SENT_PIXELS = 1920 * 1200


def size_to_send(camera: Size, box: Size | None) -> Size:
    """Returns the size in which a camera's frames travel.

    That is the camera's own: LeRobot's rollout resizes nothing. Only where the policy begins by scaling a frame down
    into a box, and would then leave the smaller frame as it is, is it made smaller before it travels.

    Args:
      camera: Size of its frames.
      box: Into which the policy scales each frame by itself, its aspect kept; None if it does not.
    """
    if box is None:
        return camera
    scaled = _scaled_into(box, camera)
    smaller = 0 < scaled[0] <= camera[0] and 0 < scaled[1] <= camera[1]
    # Where the fraction of a pixel was cut off the side that fills the box, the policy would scale once more
    return scaled if smaller and _scaled_into(box, scaled) == scaled else camera


def excess(key: str, name: str, camera: Size, declared: Size, box: Size | None) -> str:
    """Returns why a camera's frames are too large for a policy that may have other robots; "" if they are not.

    Args: those of difference.
    """
    sent = size_to_send(camera, box)
    if sent[0] * sent[1] <= max(MAX_SENT_PIXELS, declared[0] * declared[1]):
        return ""
    return (
        f"Camera {name!r} gives {_words(camera)}, which the policy would have to take whole: its configuration names "
        f"{_words(declared)} for {key!r}, and no more than that or {MAX_SENT_PIXELS} pixels are taken. Set a smaller "
        "width and height in --robot.cameras."
    )


def difference(key: str, name: str, camera: Size, declared: Size, box: Size | None) -> str:
    """Returns what a person should know where a camera may show something else than the training data; else "".

    Args:
      key: The policy's feature key.
      name: The camera's name on the robot.
      camera: Size of its frames.
      declared: Size that the policy's configuration names: that of its data, or of the base of a fine-tune.
      box: See size_to_send.
    """
    same_aspect = camera[0] * declared[1] == camera[1] * declared[0]
    if box is not None:
        # Bases name a square, which their fine-tunes keep whatever their data were
        if same_aspect or declared[0] == declared[1]:
            return ""
        seen = "The policy keeps the aspect of a frame"
    elif camera == declared:
        return ""
    else:
        seen = "Frames are sent whole, as LeRobot would show them"
    trained = _words(declared)
    return (
        f"Camera {name!r} gives {_words(camera)} and the policy's configuration names {trained} for {key!r}"
        f"{'' if same_aspect else ', another aspect'}. {seen}: if the policy was trained on {trained}, it sees another "
        f"picture now. Then set width: {declared[1]}, height: {declared[0]} in --robot.cameras. A fine-tune names the "
        "size of its base, whatever it was trained on."
    )


def _scaled_into(box: Size, frame: Size) -> Size:
    """Returns what LeRobot's resize_with_pad makes of a frame before it pads it, by the same arithmetic."""
    ratio = max(frame[1] / box[1], frame[0] / box[0])
    return int(frame[0] / ratio), int(frame[1] / ratio)


def _words(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
