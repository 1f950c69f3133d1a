"""A kept map as GeoJSON in level-0 pixels: QuPath reads it with File > Import objects from file.

One square per patch, classified by when the patch left. They are QuPath tiles: as many as a slide has,
they stay quick, and Measure > Show measurement maps and the class list work on them.
"""

from __future__ import annotations

import json
import uuid

import numpy as np

from slimbench.errors import CohortError
from slimbench.maps.colors import colors
from slimbench.maps.kept import KeptMap, exit_name


def geojson(kept: KeptMap) -> str:
    """The FeatureCollection of one slide in one cell.

    Corners are whole pixels: round(coords * patch_size), and one patch further. Raises CohortError where the
    patch size at level 0 is not known.
    """
    size = kept.patch_size
    if size is None:
        raise CohortError(
            f"slide {kept.slide.id}: its feature file does not say how large a patch is at level 0, so nothing "
            "can be placed in the slide's pixels; TRIDENT's and CLAM's .h5 files do"
        )
    corners = np.rint(kept.coords.astype(np.float64) * size).astype(int)
    edge, palette = round(size), colors(kept.exits)
    features = []
    for number, ((x, y), left) in enumerate(zip(corners.tolist(), kept.left.tolist(), strict=True)):
        ring = [[x, y], [x + edge, y], [x + edge, y + edge], [x, y + edge], [x, y]]
        properties: dict[str, object] = {
            "objectType": "tile",
            "classification": {"name": exit_name(left), "color": palette[left]},
        }
        if kept.lesion is not None:
            properties["measurements"] = {"lesion": int(kept.lesion[number])}
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{kept.record.key} {kept.slide.id} {number}")),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": properties,
            }
        )
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))
