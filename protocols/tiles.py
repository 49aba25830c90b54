"""
What a person would say of a dream made of tiles: is the player where it should be, is the rest in its place?

Some worlds are drawn from a few tiles on a grid; their meta.json says which (`tiles`). A dreamed tile gets
the name of the one whose pixels are nearest, and then only names are compared.

    tile_agent      share of dreamed frames that show the agent where truth shows it, and nowhere else
    tile_changed    of all tiles that differ, in truth, from the last context frame: the share named right;
                    None if none does. A dream that stands still scores 0 here
"""
import numpy as np
import torch


def table(tiles, channels):
    """meta.json's entry `tiles` -> (names, px, px, C) in [0, 1], the number of the agent's."""
    pixels = torch.tensor(tiles['pixels'], dtype=torch.float32) / 255
    assert pixels.shape[-1] == channels, f'tiles of {pixels.shape[-1]} channels, frames of {channels}'
    return pixels, tiles['names'].index(tiles['agent'])


def named(frames, pixels):
    """(B, K, H, W, C) in [0, 1] -> (B, K, rows, cols): the number of the nearest tile."""
    px = pixels.shape[1]
    grid = frames.unflatten(3, (-1, px)).unflatten(2, (-1, px)).transpose(3, 4)
    flat = grid.flatten(-3)                                          # (B, K, rows, cols, px*px*C)
    return torch.cdist(flat.flatten(0, 3), pixels.to(frames).flatten(1)).argmin(1).view(flat.shape[:4])


def columns(last, guesses, truth, tiles):
    """
    last (B, 1, H, W, C), {suffix: (B, K, H, W, C)}, truth, all in [0, 1] -> {name: (B, K)}: agent<suffix>:
    was it right; tiles_changed: how many differ from the last context frame; tiles_right<suffix>: how many
    of them are named right.
    """
    pixels, agent = table(tiles, truth.shape[-1])
    right, before = named(truth, pixels), named(last, pixels)
    changed = right != before                                                        # (B, K, rows, cols)
    result = {'tiles_changed': changed.flatten(2).sum(2)}
    for who, guess in guesses.items():
        name = named(guess, pixels)
        result[f'agent{who}'] = ((name == agent) == (right == agent)).flatten(2).all(2)
        result[f'tiles_right{who}'] = ((name == right) & changed).flatten(2).sum(2)
    return result


def scores(frames, who, clips, steps=slice(None)):
    """{name: number} of one predictor over these clips and steps; frames: what `columns` gave."""
    total = frames['tiles_changed'][clips, steps].sum()
    right = frames[f'tiles_right{who}'][clips, steps].sum()
    return {f'tile_agent{who}': frames[f'agent{who}'][clips, steps].mean(),
            f'tile_changed{who}': right / total if total else np.nan}
