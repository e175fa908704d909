"""SegVol for its released weights: all that the preset `segvol` names, behind `preset.PRESET`.

- `preset`: what plans with the preset fix; see `promptseg.presets`.
- `network`, `image_encoder`, `prompt_encoder`, `mask_decoder`: its exact forward pass.
- `weights`: its checkpoints, and which of their tensors make which of ours.
- `import_weights`: a model folder of a checkpoint, without a dataset.
- `preprocessing`, `views`, `decoder`, `predictor`: its inference, first the whole volume, then
  the region where something was found.

From a file to logits, part by part:

```python
from promptseg.segvol.weights import read_segvol_state, segvol_network

state = read_segvol_state("SegVol_v1.pth")  # or any state dict under SegVol's own names
network = segvol_network(state, patch_size=(32, 256, 256), stride=(4, 16, 16), heads=12)

embedding = network.image_encoder(image)  # (b, 1, 32, 256, 256) in [0, 1] -> (b, 768, 8, 16, 16)
text = network.label_text.align(clip_vectors)  # (n, 512) -> (n, 768), SegVol's text embedding
sparse, dense = network.prompt_encoder(  # any of these; all queries have the same kinds
    points=points,  # (n, k, 3) voxel indices, zyx
    point_labels=point_labels,  # (n, k) 1, 0, or -1: SegVol's "not a point"
    boxes=boxes,  # (n, 2, 3) half-open: SegVol's (n, 6) as (n, 2, 3), and 1 more at the upper end
    text=text,
)
positions = network.prompt_encoder.dense_positions()  # (768, 8, 16, 16)
logits, iou = network.mask_decoder(embedding, positions, sparse, dense, text=text)
# (n, 4, 32, 64, 64) of all mask tokens and (n, 4), no sigmoid; embedding of n images or of one
```

The usual interface, for any mix of queries: `network.encode(image)` with intensities in [0, 255],
then `network.decode(encoding, prompts)`.

Source:
    Du et al. 2024, "SegVol: Universal and Interactive Volumetric Medical Image Segmentation",
    arXiv:2311.13385. Differs: a learned vector for each label in place of CLIP's text model.
"""
