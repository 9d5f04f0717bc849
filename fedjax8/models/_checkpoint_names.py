"""Names and layouts of the parameters of `vit`, `text_encoder` and `gpt` in the files of other libraries.

A dense layer's kernel is `[in, out]` here and `[out, in]` in PyTorch; GPT-2's published layers ("Conv1D") are `[in,
out]` too. The convolution that embeds patches, `[out, channels, size, size]` there, is a dense layer here. Queries,
keys and values are thirds of one layer in timm's ViT and in GPT-2.

Names are those of timm's `VisionTransformer` and of the classes `ViTForImageClassification`,
`BertForSequenceClassification`, `RobertaForSequenceClassification` and `GPT2LMHeadModel` of Hugging Face transformers,
written down from the architectures: no file of theirs was at hand when this was written.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple


class Source(NamedTuple):
    """The tensor that a leaf comes from."""

    tensor: str
    layout: str = "same"
    """`same`; `transposed`; `leading`, with an axis of length 1 before; `patches`, a convolution's kernel for a dense
    one's; `image_positions` (leading, a class token and a grid) and `text_positions`, which may be resized."""
    part: int | None = None
    """Third of the tensor, along the axis of output features; None for all of it."""
    skip: int = 0
    """Rows of the tensor before the first of ours."""


class Names(NamedTuple):
    """A library's names of the parameters of one architecture."""

    sources: dict[str, Source]
    """Path of our leaf to its tensor."""
    head: tuple[str, ...]
    """Path prefixes of the leaves that `head="new"` does not load."""
    prefix: str = ""
    """Possible prefixes of the names, depending on the class that was saved."""
    ignored: str = "(?!)"
    """Pattern of tensors that have no place here and need none."""
    ignored_head: str = "(?!)"
    """Likewise, with `head="new"`."""


def names_of(kind: str, leaves: Collection[str]) -> Names:
    """The names of that kind for a model with these leaves."""
    depth = 1 + max((int(n.split("/")[0][6:]) for n in leaves if n.startswith("block_")), default=-1)
    if kind == "fedjax8":
        return Names({name: Source(name) for name in leaves}, ("head/",), prefix="params/", ignored_head="head/.*")
    return KINDS[kind](depth)


def _dense(ours: str, theirs: str, layout: str = "transposed") -> dict[str, Source]:
    return {f"{ours}/kernel": Source(f"{theirs}.weight", layout), f"{ours}/bias": Source(f"{theirs}.bias")}


def _norm(ours: str, theirs: str) -> dict[str, Source]:
    return {f"{ours}/scale": Source(f"{theirs}.weight"), f"{ours}/bias": Source(f"{theirs}.bias")}


def _fused(ours: str, theirs: str, layout: str = "transposed") -> dict[str, Source]:
    """Queries, keys and values from one layer."""
    found = {}
    for part, name in enumerate(("query", "key", "value")):
        found[f"{ours}/{name}/kernel"] = Source(f"{theirs}.weight", layout, part)
        found[f"{ours}/{name}/bias"] = Source(f"{theirs}.bias", "same", part)
    return found


def _blocks(depth: int, block: Callable[[str, int], dict[str, Source]]) -> dict[str, Source]:
    found = {}
    for i in range(depth):
        found |= block(f"block_{i}", i)
    return found


def _timm_vit(depth: int) -> Names:
    def block(ours: str, i: int) -> dict[str, Source]:
        theirs = f"blocks.{i}"
        return {
            **_norm(f"{ours}/norm_1", f"{theirs}.norm1"),
            **_fused(f"{ours}/attention", f"{theirs}.attn.qkv"),
            **_dense(f"{ours}/attention/output", f"{theirs}.attn.proj"),
            **_norm(f"{ours}/norm_2", f"{theirs}.norm2"),
            **_dense(f"{ours}/mlp/first", f"{theirs}.mlp.fc1"),
            **_dense(f"{ours}/mlp/second", f"{theirs}.mlp.fc2"),
        }

    sources = {
        **_dense("patch_embedding", "patch_embed.proj", "patches"),
        "class_token": Source("cls_token", "leading"),
        "position": Source("pos_embed", "image_positions"),
        **_blocks(depth, block),
        **_norm("norm", "norm"),
        **_dense("head", "head"),
    }
    return Names(sources, ("head/",), ignored_head=r"(head|pre_logits)\..*")


def _hf_layer(ours: str, theirs: str, attention: str, norms: tuple[str, str]) -> dict[str, Source]:
    """A layer of Hugging Face's encoders, whose names differ in two places."""
    return {
        **_norm(f"{ours}/norm_1", f"{theirs}.{norms[0]}"),
        **_dense(f"{ours}/attention/query", f"{theirs}.attention.{attention}.query"),
        **_dense(f"{ours}/attention/key", f"{theirs}.attention.{attention}.key"),
        **_dense(f"{ours}/attention/value", f"{theirs}.attention.{attention}.value"),
        **_dense(f"{ours}/attention/output", f"{theirs}.attention.output.dense"),
        **_norm(f"{ours}/norm_2", f"{theirs}.{norms[1]}"),
        **_dense(f"{ours}/mlp/first", f"{theirs}.intermediate.dense"),
        **_dense(f"{ours}/mlp/second", f"{theirs}.output.dense"),
    }


def _hf_vit(depth: int) -> Names:
    def block(ours: str, i: int) -> dict[str, Source]:
        return _hf_layer(ours, f"encoder.layer.{i}", "attention", ("layernorm_before", "layernorm_after"))

    sources = {
        **_dense("patch_embedding", "embeddings.patch_embeddings.projection", "patches"),
        "class_token": Source("embeddings.cls_token", "leading"),
        "position": Source("embeddings.position_embeddings", "image_positions"),
        **_blocks(depth, block),
        **_norm("norm", "layernorm"),
        **_dense("head", "classifier"),
    }
    return Names(sources, ("head/",), "vit.", r"pooler\..*", r"classifier\..*")


def _bert_like(depth: int, skip: int, pooler: str, head: str) -> dict[str, Source]:
    def block(ours: str, i: int) -> dict[str, Source]:
        return _hf_layer(ours, f"encoder.layer.{i}", "self", ("attention.output.LayerNorm", "output.LayerNorm"))

    return {
        "token_embedding/embedding": Source("embeddings.word_embeddings.weight"),
        "position": Source("embeddings.position_embeddings.weight", "text_positions", skip=skip),
        "token_type/embedding": Source("embeddings.token_type_embeddings.weight"),
        **_norm("embedding_norm", "embeddings.LayerNorm"),
        **_blocks(depth, block),
        **_dense("pooler", pooler),
        **_dense("head", head),
    }


def _bert(depth: int) -> Names:
    sources = _bert_like(depth, 0, "pooler.dense", "classifier")
    return Names(sources, ("head/",), "bert.", r"cls\..*|embeddings\.position_ids", r"classifier\..*")


def _roberta(depth: int) -> Names:
    sources = _bert_like(depth, 2, "classifier.dense", "classifier.out_proj")
    ignored = r"lm_head\..*|pooler\..*|embeddings\.position_ids"
    return Names(sources, ("pooler/", "head/"), "roberta.", ignored, r"classifier\..*")


def _gpt2(depth: int) -> Names:
    def block(ours: str, i: int) -> dict[str, Source]:
        theirs = f"h.{i}"
        return {
            **_norm(f"{ours}/norm_1", f"{theirs}.ln_1"),
            **_fused(f"{ours}/attention", f"{theirs}.attn.c_attn", "same"),
            **_dense(f"{ours}/attention/output", f"{theirs}.attn.c_proj", "same"),
            **_norm(f"{ours}/norm_2", f"{theirs}.ln_2"),
            **_dense(f"{ours}/mlp/first", f"{theirs}.mlp.c_fc", "same"),
            **_dense(f"{ours}/mlp/second", f"{theirs}.mlp.c_proj", "same"),
        }

    sources = {
        "token_embedding/embedding": Source("wte.weight"),
        "position": Source("wpe.weight", "text_positions"),
        **_blocks(depth, block),
        **_norm("norm", "ln_f"),
    }
    # Masks, which older versions saved, and a copy of the tied embedding.
    return Names(sources, (), "transformer.", r"h\.\d+\.attn\.(masked_)?bias|lm_head\.weight")


KINDS: dict[str, Callable[[int], Names]] = {
    "timm_vit": _timm_vit,
    "hf_vit": _hf_vit,
    "bert": _bert,
    "roberta": _roberta,
    "gpt2": _gpt2,
}
"""Keyed by the `names` of `load_pretrained`."""
