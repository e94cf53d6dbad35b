"""Captions to text states with CLIP text encoders.

Shapes: B captions, N chunks of all captions, L positions of a chunk (77), n chunks of a caption, D
width of a text encoder, P of the space that CLIP shares between pictures and texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from konomi.config.sections import TextConfig
from konomi.diffusion.conditioning import Conditioning
from konomi.errors import ModelError, RecipeError
from konomi.models.architecture import NO_TOKENS, AddedTokens, LoadedTextEncoder
from konomi.models.prompt_syntax import Span, find_words, parse_emphasis, parse_mixture

TOKENS_PER_CHUNK = 75


@dataclass(slots=True)
class _Chunk:
    """Tokens without start and end."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    vectors: list[tuple[int, str]] = field(default_factory=list)
    """Where a learned word begins (position among `ids`), and which."""


def encode_text(
    encoders: Sequence[LoadedTextEncoder],
    captions: Sequence[str],
    text: TextConfig,
    *,
    tokens: AddedTokens = NO_TOKENS,
    restore_mean: bool = True,
) -> Conditioning:
    """States [B, T, D of all text encoders] and, where one gives it, the pooled vector of each
    caption's first chunk.

    Every caption becomes `text.max_tokens / 75` chunks, the missing ones empty, the surplus cut
    off: what a caption becomes never depends on its neighbours in the batch (`count_chunks` tells
    how many it needs). Each chunk is wrapped in start and end tokens and encoded alone; T is 77,
    154, 231 ..., or with `sd_scripts` chunking 77, 152, 227 ... Learned `tokens` put their vectors
    in place of token embeddings. Gradients flow to both.

    With `text.emphasis` the states of a weighted token are multiplied by its weight. Then, with
    `restore_mean`, the chunk is rescaled to the mean it had (what web UIs do by default, here for
    each chunk by itself and not for a whole batch); without it weights act unscaled. `a:0.7 |
    b:0.3` blends states and pooled vectors.

    Raises RecipeError where `clip_skip` exceeds the layers, ModelError where a learned word does
    not fit.
    """
    mixtures = [
        parse_mixture(caption) if text.emphasis else ((caption, 1.0),) for caption in captions
    ]
    flat = [prompt for mixture in mixtures for prompt, _ in mixture]
    states, pooled = [], None
    for encoder in encoders:
        chunks = [_fit(_chunk(encoder, prompt, text, tokens), text) for prompt in flat]
        encoder_states, encoder_pooled = _encode(encoder, chunks, text, tokens, restore_mean)
        states.append(_blend(encoder_states, mixtures))
        if encoder_pooled is not None:
            pooled = _blend(encoder_pooled, mixtures)
    return Conditioning(states[0] if len(states) == 1 else torch.cat(states, dim=-1), pooled)


def text_features(
    encoder: LoadedTextEncoder,
    prompt: str,
    text: TextConfig,
    *,
    tail: Sequence[Callable[[Tensor], Tensor]],
    projection_PD: Tensor,
    tokens: AddedTokens = NO_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Unit vectors [N, P] of a prompt's chunks in the space that CLIP shares between pictures and
    texts (Radford et al. 2021, section 2.4), and the share [N] of each in the prompt.

    All layers run, whatever `text.clip_skip` says, and those of `tail` after them: CLIP compares
    what follows the last. A chunk's vector is the state of its end token after the final norm,
    projected. Of `a:0.7 | b:0.3` each part has its weight, of a long prompt each chunk the same
    share; the shares' absolute values add up to 1. Gradients flow to the encoder.
    """
    mixture = parse_mixture(prompt) if text.emphasis else ((prompt, 1.0),)
    parts = [(_chunk(encoder, part, text, tokens), weight) for part, weight in mixture]
    chunks = [chunk for part, _ in parts for chunk in part]
    shares = torch.tensor([weight / len(part) for part, weight in parts for _ in part])
    device = _device(encoder)
    ids_NL = torch.tensor([_wrap(encoder, chunk.ids) for chunk in chunks]).to(device)
    model = encoder.module.text_model
    hidden = _with_positions(encoder, _embed(encoder, ids_NL, chunks, tokens))
    for number in range(len(model.encoder.layers) - encoder.missing_layers):
        hidden = encoder.module.run_layer(number, hidden)
    for layer in tail:
        hidden = layer(hidden)
    ends = torch.tensor([len(chunk.ids) + 1 for chunk in chunks]).to(device)
    pooled_ND = model.final_layer_norm(hidden)[torch.arange(len(chunks), device=device), ends]
    features_NP = functional.normalize(pooled_ND @ projection_PD.T.to(pooled_ND), dim=1)
    return features_NP, (shares / shares.abs().sum().clamp_min(1e-12)).to(features_NP)


def count_chunks(
    encoders: Sequence[LoadedTextEncoder],
    captions: Sequence[str],
    text: TextConfig,
    *,
    tokens: AddedTokens = NO_TOKENS,
) -> int:
    """How many chunks the longest caption needs, at least 1; times 75 it is the `max_tokens` that
    cuts nothing off.
    """
    prompts = [p for c in captions for p, _ in (parse_mixture(c) if text.emphasis else ((c, 1.0),))]
    return max(
        (len(_chunk(encoder, prompt, text, tokens)) for encoder in encoders for prompt in prompts),
        default=1,
    )


def _chunk(
    encoder: LoadedTextEncoder, prompt: str, text: TextConfig, tokens: AddedTokens
) -> list[_Chunk]:
    """As many chunks as the prompt needs. A learned word is never torn apart."""
    size = _num_positions(encoder) - 2
    sections = parse_emphasis(prompt) if text.emphasis else ((Span(prompt),),)
    chunks: list[_Chunk] = []
    for section in sections:
        chunks.append(_Chunk())
        for span in section:
            for word, ids in _tokenize(encoder, span.text, tokens):
                if word is not None and len(ids) > size:
                    raise ModelError(
                        f"The learned word {word!r} has {len(ids)} vectors; at most {size} fit."
                    )
                for piece in [ids] if word is not None else [[token] for token in ids]:
                    if len(chunks[-1].ids) + len(piece) > size:
                        chunks.append(_Chunk())
                    if word is not None:
                        chunks[-1].vectors.append((len(chunks[-1].ids), word))
                    chunks[-1].ids += piece
                    chunks[-1].weights += [span.weight] * len(piece)
    return chunks


def _tokenize(
    encoder: LoadedTextEncoder, span: str, tokens: AddedTokens
) -> list[tuple[str | None, list[int]]]:
    """(learned word or None, token ids). A learned word's ids only hold its places."""
    found: list[tuple[str | None, list[int]]] = []
    known = [word for word, vectors in tokens.items() if encoder.part in vectors]
    for piece, word in find_words(span, known):
        if word is not None:
            found.append((word, [0] * len(tokens[word][encoder.part])))
        elif piece.strip():
            found.append((None, encoder.tokenizer.ids(piece)))
    return found


def _fit(chunks: list[_Chunk], text: TextConfig) -> list[_Chunk]:
    """Exactly as many chunks as asked for."""
    count = text.max_tokens // TOKENS_PER_CHUNK
    return chunks[:count] + [_Chunk() for _ in range(count - len(chunks))]


def _encode(
    encoder: LoadedTextEncoder,
    captions: list[list[_Chunk]],
    text: TextConfig,
    tokens: AddedTokens,
    restore_mean: bool,
) -> tuple[Tensor, Tensor | None]:
    """States [B, T, D] and pooled [B, P] of one text encoder, all chunks in one pass."""
    chunks = [chunk for caption in captions for chunk in caption]
    device = _device(encoder)
    ids_NL = torch.tensor([_wrap(encoder, chunk.ids) for chunk in chunks]).to(
        device, non_blocking=True
    )
    states_NLD, last_NLD = _run_layers(
        encoder, _embed(encoder, ids_NL, chunks, tokens), text.clip_skip
    )
    if any(weight != 1.0 for chunk in chunks for weight in chunk.weights):
        states_NLD = _emphasise(states_NLD, chunks, restore_mean)
    count = len(captions[0])
    states = _join(states_NLD.unflatten(0, (len(captions), count)), text.chunking)
    if last_NLD is None:
        return states, None
    # The end token of each first chunk, found by counting: its id may also stand in the text.
    ends = torch.tensor([len(caption[0].ids) + 1 for caption in captions]).to(
        device, non_blocking=True
    )
    rows = torch.arange(0, len(chunks), count, device=device)
    pooled = last_NLD[rows, ends]
    projection = getattr(encoder.module, "text_projection", None)
    return states, pooled if projection is None else projection(pooled)


def _wrap(encoder: LoadedTextEncoder, ids: list[int]) -> list[int]:
    tokenizer = encoder.tokenizer
    padding = [tokenizer.pad_token_id] * (_num_positions(encoder) - 2 - len(ids))
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding]


def _embed(
    encoder: LoadedTextEncoder, ids_NL: Tensor, chunks: list[_Chunk], tokens: AddedTokens
) -> Tensor:
    """Token embeddings with learned words in their places."""
    embedded_NLD: Tensor = encoder.module.text_model.embeddings.token_embedding(ids_NL)
    places = [
        (row, start + 1, word) for row, chunk in enumerate(chunks) for start, word in chunk.vectors
    ]
    if not places:
        return embedded_NLD
    vectors = []
    for _, _, word in places:
        vector = tokens[word][encoder.part]
        if vector.shape[1] != embedded_NLD.shape[2]:
            raise ModelError(
                f"The learned word {word!r} is {vector.shape[1]} wide; {encoder.part} of this base "
                f"has width {embedded_NLD.shape[2]}. It was learned on another family of models."
            )
        vectors.append(vector.to(embedded_NLD.device, embedded_NLD.dtype))
    rows = [row for (row, _, _), vector in zip(places, vectors) for _ in vector]
    columns = [
        start + i for (_, start, _), vector in zip(places, vectors) for i in range(len(vector))
    ]
    index = tuple(torch.tensor(values).to(embedded_NLD.device) for values in (rows, columns))
    return embedded_NLD.index_put(index, torch.cat(vectors))


def _run_layers(
    encoder: LoadedTextEncoder, embedded_NLD: Tensor, clip_skip: int
) -> tuple[Tensor, Tensor | None]:
    """States of the layer asked for, and where the encoder pools also the last layer's, normed. No
    layer runs in vain.
    """
    model = encoder.module.text_model
    count = len(model.encoder.layers)
    skip = clip_skip or encoder.layer
    if skip > count:
        raise RecipeError(
            f"text.clip_skip is {skip}; this base's {encoder.part} has {count} layers."
        )
    if skip <= encoder.missing_layers:
        raise RecipeError(
            f"text.clip_skip is {skip}; this base's file holds only the first "
            f"{count - encoder.missing_layers} of the {count} layers of {encoder.part}, so "
            f"{encoder.missing_layers + 1} is the smallest."
        )
    states = hidden = _with_positions(encoder, embedded_NLD)
    for number in range(count if encoder.pooled else count - skip + 1):
        hidden = encoder.module.run_layer(number, hidden)
        if number == count - skip:
            states = model.final_layer_norm(hidden) if encoder.final_norm else hidden
    return states, model.final_layer_norm(hidden) if encoder.pooled else None


def _with_positions(encoder: LoadedTextEncoder, embedded_NLD: Tensor) -> Tensor:
    table: Tensor = encoder.module.text_model.embeddings.position_embedding.weight
    return embedded_NLD + table[: embedded_NLD.shape[1]]


def _emphasise(states_NLD: Tensor, chunks: list[_Chunk], restore_mean: bool) -> Tensor:
    length = states_NLD.shape[1]
    rows = [[1.0, *chunk.weights, *[1.0] * (length - 1 - len(chunk.weights))] for chunk in chunks]
    weights_NL1 = torch.tensor(rows).to(states_NLD.device, non_blocking=True)[..., None]
    states = states_NLD.float()
    weighted = states * weights_NL1
    if restore_mean:
        before, after = states.mean((1, 2), keepdim=True), weighted.mean((1, 2), keepdim=True)
        # Where a mean is about zero, their ratio is rounding noise: such a chunk stays as it is.
        size = states.square().mean((1, 2), keepdim=True).sqrt()
        ratio = before / after
        usable = (
            (before.abs() > 1e-4 * size)
            & (ratio > 0.1)
            & (ratio < 10.0)
            & (weights_NL1 != 1).any(1, keepdim=True)
        )
        weighted = weighted * torch.where(usable, ratio, torch.ones_like(ratio))
    return weighted.to(states_NLD.dtype)


def _join(states_BnLD: Tensor, chunking: Literal["novelai", "sd_scripts"]) -> Tensor:
    if chunking == "novelai":
        return states_BnLD.flatten(1, 2)
    inner = states_BnLD[:, :, 1:-1].flatten(1, 2)
    return torch.cat([states_BnLD[:, 0, :1], inner, states_BnLD[:, -1, -1:]], dim=1)


def _blend(values: Tensor, mixtures: Sequence[Sequence[tuple[str, float]]]) -> Tensor:
    """Sum each caption's parts by their shares; [sum of parts, ...] -> [B, ...]."""
    if len(mixtures) == len(values):
        return values
    blended, start = [], 0
    for mixture in mixtures:
        parts = values[start : start + len(mixture)]
        shares = torch.tensor(
            [share for _, share in mixture], device=values.device, dtype=values.dtype
        )
        blended.append(parts[0] if len(mixture) == 1 else torch.tensordot(shares, parts, dims=1))
        start += len(mixture)
    return torch.stack(blended)


def _device(encoder: LoadedTextEncoder) -> torch.device:
    device: torch.device = encoder.module.text_model.embeddings.token_embedding.weight.device
    return device


def _num_positions(encoder: LoadedTextEncoder) -> int:
    return int(encoder.module.text_model.embeddings.position_embedding.weight.shape[0])
