"""Where the camera of a recorded scene stood, from the places that the scene gives its objects in the picture.

The release jitters its camera and does not record it; scenes do record each object's centre in the world and in the
picture. Knows geometry only: no pictures, no drawing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_scripts.errors import DataError
from data_scripts.synth.camera import Camera, Point
from data_scripts.synth.presets import Preset

FEWEST = 2
"""Objects for a fit: one gives three numbers for three unknowns and nothing that could contradict them."""
DEPTH_WEIGHT = 1_000.0
"""Pixels that a world unit of depth is worth: depths are recorded to about 1e-6, pixels are rounded to whole ones."""
WORST_MISS = 2.0
"""Pixels by which a centre may miss its recorded place; rounding to whole pixels explains 0.7."""


def fit_camera(
    objects: Sequence[Mapping[str, Any]],
    *,
    width: int = 480,
    height: int = 320,
    focal: float = Preset.focal * 480,
    aim: float = Preset.aim,
    start: Point = Preset.camera,
) -> Camera:
    """The camera that sees objects where their scene says.

    Unknown is its position only. Least squares over the recorded pixels and depths.

    Args:
        objects: a scene's objects, at least FEWEST, with `3d_coords` [x, y, z] in world units and `pixel_coords`
            [x, y in pixels of the picture, depth in world units].
        width, height: the picture's size in pixels.
        focal: in pixels.
        aim: height above the origin that the camera looks at.
        start: a position not far off.

    Raises:
        DataError: there are too few objects, or no camera sees all of them within WORST_MISS pixels.
    """
    if len(objects) < FEWEST:
        raise DataError(f"expected at least {FEWEST} objects to fit a camera to, got {len(objects)}")
    from scipy.optimize import least_squares

    places, recorded = recorded_places(objects)
    weights = np.array((1.0, 1.0, DEPTH_WEIGHT))[:, None]

    def camera_at(position: NDArray[np.float64]) -> Camera:
        x, y, z = position.tolist()
        return Camera((x, y, z), width, height, focal, aim)

    def misses(position: NDArray[np.float64]) -> NDArray[np.float64]:
        return ((camera_at(position).project(places) - recorded) * weights).ravel()

    camera = camera_at(least_squares(misses, np.array(start), x_scale="jac").x)
    worst = float(np.abs(camera.project(places) - recorded)[:2].max())
    if not worst <= WORST_MISS:
        raise DataError(
            f"expected a camera that sees every object within {WORST_MISS:g} pixels of its pixel_coords, "
            f"the best misses one by {worst:.1f}: check that the scene, the picture's size and focal belong together"
        )
    return camera


def recorded_places(objects: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The centres of objects as a scene records them: in the world (3, N), and as x, y in pixels and depth (3, N)."""
    world = np.array([thing["3d_coords"] for thing in objects], dtype=np.float64)
    seen = np.array([thing["pixel_coords"] for thing in objects], dtype=np.float64)
    return world.reshape(-1, 3).T, seen.reshape(-1, 3).T
