"""A small renderer in software, for machines without OpenGL.

Projects the scene's primitives and fills their faces from far to near. Faces that cross each other may show the wrong
one in front; the scene stays recognisable, and red things stay red.
"""

import time
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lerobot_robot_longarm_sim.renderer import Renderer
from lerobot_robot_longarm_sim.state import FloatArray, Frame

NEAR_METRES = 0.01
CYLINDER_SIDES = 12
# Everything stands on these, in this order: drawing them first spares them the sorting, which is by a face's centre.
UNDERLAY = ("table", "mat")
SKY_TOP, SKY_BOTTOM = (158, 176, 196), (226, 233, 240)

LIGHT_DIRECTION = np.array((0.27, 0.32, 0.91))
AMBIENT, DIFFUSE = 0.62, 0.42

# Python draws the faces, so it holds the interpreter lock. A nap after each handful hands the lock to the control loop,
# which would otherwise wait for the interpreter's switch interval of 5 ms.
FACES_PER_NAP = 8
NAP_SECONDS = 50e-6


@dataclass(frozen=True)
class Solid:
    """A convex primitive in the frame of its geom, metres."""

    vertices: FloatArray
    faces: list[list[int]]


def box(half_size: FloatArray) -> Solid:
    """Returns a box of the given half lengths, shape (3,)."""
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
    faces = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    return Solid(corners * half_size, faces)


def cylinder(radius: float, half_length: float) -> Solid:
    """Returns a prism that stands for a cylinder along z."""
    sides = CYLINDER_SIDES
    angles = np.linspace(0.0, 2 * np.pi, sides, endpoint=False)
    ring = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    vertices = np.concatenate([np.column_stack([ring, np.full(sides, end)]) for end in (-half_length, half_length)])
    walls = [[i, (i + 1) % sides, sides + (i + 1) % sides, sides + i] for i in range(sides)]
    return Solid(vertices, [*walls, list(range(sides - 1, -1, -1)), list(range(sides, 2 * sides))])


def clip_near(polygon: FloatArray) -> FloatArray:
    """Returns the part of a polygon, shape (n, 3) in camera coordinates, that lies ahead of the near plane."""
    kept: list[FloatArray] = []
    for here, ahead in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        depth, next_depth = -here[2], -ahead[2]
        if depth >= NEAR_METRES:
            kept.append(here)
        if (depth >= NEAR_METRES) != (next_depth >= NEAR_METRES):
            kept.append(here + (ahead - here) * (NEAR_METRES - depth) / (next_depth - depth))
    return np.array(kept).reshape(-1, 3)


class PlainRenderer(Renderer):
    """Draws boxes and cylinders with Pillow; other geoms are left out."""

    name = "plain"

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        super().__init__(model, width, height)
        self._collect_faces()
        rows = np.linspace(SKY_TOP, SKY_BOTTOM, height).astype(np.uint8)
        self._sky = Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows[:, None], (height, width, 3))))

    def _collect_faces(self) -> None:
        """Gathers all geoms' faces in arrays, so that one multiplication moves them all."""
        model = self.model
        vertices: list[FloatArray] = []
        vertex_geoms: list[int] = []
        self._faces: list[list[int]] = []
        normals, centres, face_geoms = [], [], []
        for geom in range(model.ngeom):
            solid = self._solid(geom)
            if solid is None:
                continue
            first = len(vertex_geoms)
            vertices.append(solid.vertices)
            vertex_geoms += [geom] * len(solid.vertices)
            for face in solid.faces:
                corners = solid.vertices[face]
                normal = np.cross(corners[1] - corners[0], corners[2] - corners[1])
                self._faces.append([first + index for index in face])
                normals.append(normal / np.linalg.norm(normal))
                centres.append(corners.mean(axis=0))
                face_geoms.append(geom)
        self._vertices, self._vertex_geoms = np.concatenate(vertices), np.array(vertex_geoms)
        self._normals, self._centres, self._face_geoms = np.array(normals), np.array(centres), np.array(face_geoms)
        self._colours = model.geom_rgba[self._face_geoms, :3] * 255.0
        underlay = [model.geom(name).id for name in UNDERLAY]
        self._layers = np.array([underlay.index(geom) if geom in underlay else len(underlay) for geom in face_geoms])

    def _solid(self, geom: int) -> Solid | None:
        kind, size = self.model.geom_type[geom], self.model.geom_size[geom]
        if self.model.geom_rgba[geom, 3] == 0.0:
            return None
        if kind == mujoco.mjtGeom.mjGEOM_BOX.value:
            return box(size)
        if kind == mujoco.mjtGeom.mjGEOM_CYLINDER.value:
            return cylinder(float(size[0]), float(size[1]))
        return None

    def _draw(self, camera: int) -> Frame:
        rotations = self.data.geom_xmat.reshape(-1, 3, 3)
        eye, axes = self.data.cam_xpos[camera], self.data.cam_xmat[camera].reshape(3, 3)
        places = self.data.geom_xpos - eye

        def turn(vectors: FloatArray, geoms: NDArray[np.intp]) -> FloatArray:
            turned: FloatArray = np.einsum("nij,nj->ni", rotations[geoms], vectors)
            return turned

        vertices = (turn(self._vertices, self._vertex_geoms) + places[self._vertex_geoms]) @ axes
        normals = turn(self._normals, self._face_geoms)
        towards = turn(self._centres, self._face_geoms) + places[self._face_geoms]
        distances = np.linalg.norm(towards, axis=1)
        # Faces seen from the edge would come out as lines, a whole pixel wide.
        facing = np.flatnonzero(np.einsum("ni,ni->n", normals, towards) < -0.02 * distances)
        order = facing[np.lexsort((-distances[facing], self._layers[facing]))]
        shades = AMBIENT + DIFFUSE * np.clip(normals @ LIGHT_DIRECTION, 0.0, None)
        colours = np.clip(self._colours * shades[:, None], 0, 255).astype(int).tolist()

        focal = 0.5 * self.height / np.tan(0.5 * np.radians(self.model.cam_fovy[camera]))
        centre = (0.5 * self.width, 0.5 * self.height)
        image = self._sky.copy()
        drawing = ImageDraw.Draw(image)
        for count, face in enumerate(order.tolist()):
            corners = vertices[self._faces[face]]
            if corners[:, 2].max() > -NEAR_METRES:
                corners = clip_near(corners)
            if len(corners) >= 3:
                outline = corners[:, :2] * (focal / -corners[:, 2:]) * (1, -1) + centre
                drawing.polygon(outline.ravel().tolist(), fill=tuple(colours[face]))
            if count % FACES_PER_NAP == FACES_PER_NAP - 1:
                time.sleep(NAP_SECONDS)
        return np.array(image)
