"""The arm's joints: names in LeRobot's order, and the poses that the rest of the package refers to.

Units are those of LeRobot's SO-101 follower: degrees for the five body joints, 0 (closed) to 100 (open) for the
gripper.
"""

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
GRIPPER = "gripper"

# The fingers point down at the table, a hand's breadth above it: where `reset` puts the arm.
HOME = {
    "shoulder_pan": 0.0,
    "shoulder_lift": -12.0,
    "elbow_flex": 0.0,
    "wrist_flex": 78.0,
    "wrist_roll": 0.0,
    "gripper": 40.0,
}


def position_key(joint: str) -> str:
    """Returns the name that the joint has in LeRobot's observations and actions."""
    return f"{joint}.pos"
