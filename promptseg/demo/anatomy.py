"""The anatomy of the phantoms: an upper abdomen, and a liver as seen by an ultrasound probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from promptseg.demo.shapes import Ellipsoid, Structure

LONG = 1e4  # mm; a radius that makes an ellipsoid a cylinder within the volume
_OUTER = (80.0, 98.0)  # mm; the trunk's radii along y and x
_SPINE_Y = 48.0  # mm behind the middle of the trunk


class _Patient:
    """Places ellipsoids in one patient of random build and position, and varies each of them."""

    def __init__(self, rng: np.random.Generator, build: float, shift_mm: float) -> None:
        self.rng = rng
        self.build = build
        self.shift = rng.uniform(-shift_mm, shift_mm, 3)

    def ellipsoid(
        self,
        center: Sequence[float],
        radii: Sequence[float],
        degrees: Sequence[float] = (0.0, 0.0, 0.0),
        *,
        move: float = 0.0,
        scale: float = 0.0,
        turn: float = 0.0,
    ) -> Ellipsoid:
        """An ellipsoid of the average patient, varied at random.

        Args:
            center: mean position in mm, zyx, relative to the middle of the volume.
            radii: mean radii in mm along its own axes, zyx.
            degrees: mean rotation, as in `Ellipsoid`.
            move: largest shift along each axis in mm.
            scale: largest relative change of each radius.
            turn: largest change of each angle in degrees.
        """
        vary = self.rng.uniform
        moved = np.multiply(center, self.build) + self.shift + vary(-move, move, 3)
        scaled = np.multiply(radii, self.build) * vary(1 - scale, 1 + scale, 3)
        return _ellipsoid(moved, scaled, np.add(degrees, vary(-turn, turn, 3)))


def abdomen(rng: np.random.Generator) -> tuple[Structure, ...]:
    """A patient of random build, lying on the back; x points to the patient's left, y to the back.

    Labelled are the liver without its lesion, both kidneys, and the lesion.
    """
    patient = _Patient(rng, build=rng.uniform(0.93, 1.06), shift_mm=6.0)
    fat = rng.uniform(6, 14)  # mm under the skin
    skin, wall, cavity = (
        patient.ellipsoid((0, 0, 0), (LONG, _OUTER[0] - depth, _OUTER[1] - depth))
        for depth in (0, fat, fat + 9)
    )
    return (
        Structure(tissue="fat", parts=(skin,)),
        Structure(tissue="muscle", parts=(wall,)),
        Structure(tissue="fat", parts=(cavity,)),
        *_back_muscles_and_ribs(patient, wall, fat),
        *_stomach_bowel_and_spleen(patient, cavity),
        *_liver_and_vessels(patient, cavity),
        *_spine(patient),
        *_kidneys(patient, cavity),
        _lesion(patient, cavity),
    )


def _back_muscles_and_ribs(patient: _Patient, wall: Ellipsoid, fat: float) -> list[Structure]:
    psoas = [patient.ellipsoid((-30, 44, side * 24), (LONG, 12, 12)) for side in (-1, 1)]
    erector = [patient.ellipsoid((0, 66, side * 26), (LONG, 12, 20)) for side in (-1, 1)]
    structures = [Structure(tissue="muscle", parts=(*psoas, *erector), within=wall)]
    depth_y, depth_x = (radius - fat - 5 for radius in _OUTER)
    for i, angle in enumerate(np.radians(np.arange(-150, 151, 25.0) + patient.rng.uniform(-8, 8))):
        if abs(angle) < np.radians(40):
            continue  # no ribs in front
        y, x = -np.cos(angle) * depth_y, np.sin(angle) * depth_x
        along = np.degrees(np.arctan2(np.sin(angle) * depth_y, np.cos(angle) * depth_x))
        for z in np.arange(-80, 81, 32) + 16 * (i % 2):
            rib = patient.ellipsoid((z, y, x), (10, 3.5, 10), (along, 0, 0))
            structures.append(Structure(tissue="bone", parts=(rib,), within=wall))
    return structures


def _stomach_bowel_and_spleen(patient: _Patient, cavity: Ellipsoid) -> list[Structure]:
    stomach = patient.ellipsoid((8, -32, 44), (44, 24, 32), (-18, 0, 0), move=5, scale=0.1, turn=10)
    lumen = _shrunk(stomach, 4.0)
    gas = _ellipsoid(
        np.subtract(stomach.center, (0, 0.55 * stomach.radii[1], 0)),
        np.multiply(stomach.radii, (0.7, 0.35, 0.6)),
    )
    loops = ((-44, -30, 18), (-48, -22, 52), (-38, -44, 42), (-54, -40, -6))
    bowel = tuple(patient.ellipsoid(at, (16, 11, 18), move=6, turn=30) for at in loops)
    spleen = patient.ellipsoid((16, 22, 70), (36, 34, 17), (28, 0, 0), move=4, scale=0.1, turn=8)
    return [
        Structure(tissue="bowel", parts=bowel, within=cavity),
        Structure(tissue="muscle", parts=(stomach,), within=cavity),
        Structure(tissue="fluid", parts=(lumen,), within=cavity),
        Structure(tissue="air", parts=(gas,), within=lumen),
        Structure(tissue="spleen", parts=(spleen,), within=cavity),
    ]


def _liver_and_vessels(patient: _Patient, cavity: Ellipsoid) -> list[Structure]:
    right = patient.ellipsoid((4, -6, -48), (56, 54, 44), (8, 0, 0), move=5, scale=0.08, turn=8)
    left = patient.ellipsoid((14, -38, -4), (32, 22, 48), (14, 0, 0), move=5, scale=0.1, turn=8)
    aorta = patient.ellipsoid((0, 22, 9), (LONG, 8, 8))
    vena_cava = patient.ellipsoid((0, 20, -17), (LONG, 8, 10))
    return [
        Structure(tissue="liver", parts=(right, left), within=cavity, label="liver"),
        Structure(tissue="vessel", parts=(aorta, vena_cava)),
    ]


def _spine(patient: _Patient) -> list[Structure]:
    phase = patient.rng.uniform(-15, 15)
    vertebrae = [(z + phase, _SPINE_Y, 0) for z in (-105, -70, -35, 0, 35, 70)]
    bodies = tuple(patient.ellipsoid(at, (18, 16, 19)) for at in vertebrae)
    marrow = tuple(patient.ellipsoid(at, (14, 13, 16)) for at in vertebrae)
    processes = tuple(
        patient.ellipsoid((z - 8, _SPINE_Y + 34, 0), (12, 9, 4)) for z, _, _ in vertebrae
    )
    arch = patient.ellipsoid((0, _SPINE_Y + 20, 0), (LONG, 11, 13))
    canal = patient.ellipsoid((0, _SPINE_Y + 20, 0), (LONG, 8, 9))
    discs = patient.ellipsoid((0, _SPINE_Y, 0), (LONG, 14, 17))
    return [
        Structure(tissue="disc", parts=(discs,)),
        Structure(tissue="bone", parts=bodies),
        Structure(tissue="marrow", parts=marrow),
        Structure(tissue="bone", parts=(arch, *processes)),
        Structure(tissue="canal", parts=(canal,)),
    ]


def _kidneys(patient: _Patient, cavity: Ellipsoid) -> list[Structure]:
    """Both kidneys, each with a sinus towards the middle, which belongs to the label."""
    kidneys, sinuses = [], []
    for z, side in ((-18, -1), (-10, 1)):
        kidney = patient.ellipsoid(
            (z, 34, side * 47), (42, 19, 23), (side * 28, 0, side * 6), move=4, scale=0.08, turn=6
        )
        hilum = np.add(kidney.center, (0, -5, -9 * side))
        kidneys.append(kidney)
        sinuses.append(
            _ellipsoid(hilum, np.multiply(kidney.radii, (0.45, 0.42, 0.42)), kidney.degrees)
        )
    return [
        Structure(tissue="kidney", parts=tuple(kidneys), within=cavity, label="kidney"),
        Structure(tissue="sinus", parts=tuple(sinuses), within=cavity, label="kidney"),
    ]


def _lesion(patient: _Patient, cavity: Ellipsoid) -> Structure:
    """A roundish lesion in the right lobe of the liver, 26 to 46 mm across."""
    center = np.add((4, -15, -48), patient.rng.uniform((-9, -8, -8), (9, 8, 8)))
    radius = patient.rng.uniform(15, 20)
    lesion = patient.ellipsoid(center, (radius,) * 3, scale=0.13, turn=90)
    return Structure(tissue="lesion", parts=(lesion,), within=cavity, label="lesion")


def liver_under_a_probe(rng: np.random.Generator) -> tuple[Structure, ...]:
    """Liver with a lesion, the right kidney and the gallbladder below an abdominal wall.

    y points away from the probe, which touches the skin at the top of the volume.
    """
    patient = _Patient(rng, build=1.0, shift_mm=4.0)
    vary = {"move": 1.5, "scale": 0.08, "turn": 6.0}
    liver = patient.ellipsoid((0, -4, -8), (46, 34, 50), (6, 0, 0), **vary)
    kidney = patient.ellipsoid((2, 27, 18), (22, 14, 27), (16, 0, 0), **vary)
    sinus = _ellipsoid(kidney.center, np.multiply(kidney.radii, (0.4, 0.36, 0.5)), kidney.degrees)
    gallbladder = patient.ellipsoid((-4, -6, 26), (14, 9, 11), (20, 0, 0), **vary)
    veins = (
        patient.ellipsoid((2, 4, -30), (3.5, 4, 24), (30, 0, 0), **vary),
        patient.ellipsoid((-12, -14, 14), (3.5, 3.5, 20), (-25, 0, 0), **vary),
    )
    lesion_center = np.add((0, -6, -22), rng.uniform((-6, -5, -6), (6, 5, 6)))
    lesion = patient.ellipsoid(lesion_center, (rng.uniform(8.5, 10.5),) * 3, **vary)
    skin_fat = _ellipsoid((0, -54, 0), (LONG, 9, LONG))
    wall = _ellipsoid((0, -54, 0), (LONG, 17, LONG))
    return (
        Structure(tissue="fat", parts=(_ellipsoid((0, 0, 0), (LONG,) * 3),)),
        Structure(tissue="diaphragm", parts=(_shrunk(liver, -3.0),)),
        Structure(tissue="liver", parts=(liver,), label="liver"),
        Structure(tissue="vessel", parts=veins, within=liver, label="liver"),
        Structure(tissue="fluid", parts=(gallbladder,)),
        Structure(tissue="diaphragm", parts=(_shrunk(kidney, -1.5),)),  # its capsule
        Structure(tissue="kidney", parts=(kidney,), label="kidney"),
        Structure(tissue="sinus", parts=(sinus,), label="kidney"),
        Structure(tissue="lesion", parts=(lesion,), within=liver, label="lesion"),
        Structure(tissue="muscle", parts=(wall,)),
        Structure(tissue="fat", parts=(skin_fat,)),
    )


def _ellipsoid(
    center: Sequence[float], radii: Sequence[float], degrees: Sequence[float] = (0.0, 0.0, 0.0)
) -> Ellipsoid:
    """An ellipsoid of Python numbers, from any sequences."""
    center, radii, degrees = (tuple(float(v) for v in x) for x in (center, radii, degrees))
    return Ellipsoid(center=center, radii=radii, degrees=degrees)


def _shrunk(ellipsoid: Ellipsoid, mm: float) -> Ellipsoid:
    """The same ellipsoid with its radii smaller by `mm`."""
    radii = [radius - mm for radius in ellipsoid.radii]
    return _ellipsoid(ellipsoid.center, radii, ellipsoid.degrees)
