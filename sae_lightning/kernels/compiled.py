"""Loops that PyTorch has no operator for, compiled by numba. Every one works on a part `first:last` of its outer axis and lets the GIL go.

Imported only where numba is installed (extra `fast`). A number of an output is the work of one loop in one order, so that results do not
depend on how the parts were cut. Bit for bit: `top_k` and `above` choose what the reference chooses (ties: the lower latent).
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

NAN = np.int32(0x7FC00000)
"""The bits of a positive NaN: above those of every number."""
WORD = 8
"""A comparison makes one byte, and eight bytes are looked at at a time: nearly all words are 0, for little of what is compared is chosen."""


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    """What numba makes of it when it is first called, kept on disk where there is a place for it. (A test's type checker is taken off.)"""
    function = inspect.unwrap(function)
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy", **options)(function)
    except RuntimeError:  # neither beside this file nor in a user's cache may be written
        return numba.njit(nogil=True, error_model="numpy", **options)(function)


def compiled(function: Callable[..., Any]) -> Any:
    return _compile(function)


def summing(function: Callable[..., Any]) -> Any:
    """Sums in an order that suits the processor: the same order every time. A NaN stays one."""
    return _compile(function, fastmath={"reassoc", "contract", "nsz"})


@compiled
def _collect(row, floor, mask, words, found, at):
    """Everything not ≤ floor (a NaN is among it), in the order of the latents; returns how many. `words` are the bytes of `mask`."""
    m = 0
    for j in range(row.shape[0]):
        mask[j] = not (row[j] <= floor)
    for w in range(words.shape[0]):
        if words[w] != 0:
            for j in range(WORD * w, min(WORD * w + WORD, row.shape[0])):
                found[m], at[m] = row[j], j
                m += mask[j]
    return m


@compiled
def _kth_largest(v, m, k):
    """The k-th largest of v[:m] (1 ≤ k ≤ m); reorders v. Quickselect with the median of three as pivot."""
    lo, hi, wanted = 0, m - 1, k - 1
    while lo < hi:
        a, b, c = v[lo], v[(lo + hi) >> 1], v[hi]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = lo, hi
        while i <= j:
            while v[i] > pivot:
                i += 1
            while v[j] < pivot:
                j -= 1
            if i <= j:
                v[i], v[j] = v[j], v[i]
                i += 1
                j -= 1
        if wanted <= j:
            hi = j
        elif wanted >= i:
            lo = i
        else:
            break
    return v[wanted]


@compiled
def top_k(first, last, h, k, values, latents):
    """The k largest positive h of each row in the order of their latents; the lowest other latents with value 0 where there are fewer.

    A guess of the k-th largest, taken from the row before, keeps most of a row from being looked at twice. It never changes the result.
    """
    n = h.shape[1]
    found, at, scratch = np.empty(n + 1, h.dtype), np.empty(n + 1, np.int32), np.empty(n, h.dtype)
    mask = np.zeros((n + WORD - 1) // WORD * WORD, np.uint8)
    words = mask.view(np.uint64)
    zero = h.dtype.type(0)
    guess, share = zero, 0.85
    for r in range(first, last):
        row = h[r]
        m = _collect(row, guess, mask, words, found, at)
        if m < k and guess > 0:
            share *= 0.98
            guess = h.dtype.type(0.8 * guess)
            m = _collect(row, guess, mask, words, found, at)
            if m < k:
                guess = zero
                m = _collect(row, guess, mask, words, found, at)
        elif m > 2 * k:
            share = min(0.97, share * 1.005)
        kth, ties = zero, 0
        if m > k:
            for i in range(m):
                if math.isnan(found[i]):
                    found[i] = np.inf
                scratch[i] = found[i]
            kth = _kth_largest(scratch, m, k)
            ties = k
            for i in range(m):
                ties -= found[i] > kth
        q = 0
        for i in range(m):
            if m <= k or found[i] > kth:
                take = True
            else:
                take = found[i] == kth and ties > 0
                ties -= take
            if take:
                values[r, q], latents[r, q] = row[at[i]], at[i]
                q += 1
        if m >= k:
            low = values[r, 0]
            for i in range(1, k):
                low = min(low, values[r, i])
            guess = h.dtype.type(share * low)
        elif q < k:
            _fill(values[r], latents[r], q, k)
            guess = zero


@compiled
def keep_top_k(first, last, h, bits, k):
    """Sets to 0, in place, what is not among the k largest positive numbers of its row (of equal ones: the first are kept). A NaN is the largest.

    `bits` is h as int32: positive numbers are ordered like their bits, so that the k-th largest is found by halving, each time with a
    count that has no branch.
    """
    n = h.shape[1]
    for r in range(first, last):
        row, word = h[r], bits[r]
        positive, nans, largest = np.int32(0), np.int32(0), np.int32(0)
        for j in range(n):
            positive += np.int32(row[j] > 0)
            nans += np.int32(row[j] != row[j])
            largest = max(largest, word[j])
        if nans > 0:
            for j in range(n):
                if row[j] != row[j]:
                    word[j] = NAN
            largest = NAN
            positive += nans
        low = np.int32(1)
        if positive > k:
            high = largest
            while low < high:
                middle = low + (high - low + 1) // 2
                over = np.int32(0)
                for j in range(n):
                    over += np.int32(word[j] >= middle)
                if over >= k:
                    low = np.int32(middle)
                    if over == k:
                        break
                else:
                    high = np.int32(middle - 1)
        kept = np.int32(0)
        for j in range(n):
            kept += np.int32(word[j] >= low)
            word[j] = word[j] if word[j] >= low else np.int32(0)
        if kept > k:  # several are equal to the k-th largest
            spare = kept - k
            for j in range(n - 1, -1, -1):
                if spare > 0 and word[j] == low:
                    word[j] = 0
                    spare -= 1


@compiled
def positive(first, last, values, per_column, per_row):
    """Adds to `per_column` in which of the rows first:last a column is positive; `per_row` counts them in each row."""
    for r in range(first, last):
        row, count = values[r], np.int32(0)
        for j in range(row.shape[0]):
            count += np.int32(row[j] > 0)
            per_column[j] += np.int32(row[j] > 0)
        per_row[r] = count


@compiled
def _fill(values, latents, q, k):
    """The lowest latents that are not among latents[:q], with value 0."""
    i, candidate, chosen = q, 0, 0
    while i < k:
        if chosen < q and latents[chosen] == candidate:
            chosen += 1
        else:
            values[i], latents[i] = 0, candidate
            i += 1
        candidate += 1


@compiled
def above(first, last, h, threshold, per_row, values, latents):
    """What of each row is not ≤ its threshold, one after another, until `values` is full; `per_row` counts all of it."""
    n, capacity, m = h.shape[1], values.shape[0], 0
    mask = np.zeros((n + WORD - 1) // WORD * WORD, np.uint8)
    words = mask.view(np.uint64)
    for r in range(first, last):
        row, before = h[r], m
        for j in range(n):
            mask[j] = not (row[j] <= threshold[j])
        for w in range(words.shape[0]):
            if words[w] != 0:
                for j in range(WORD * w, min(WORD * w + WORD, n)):
                    if m < capacity:
                        values[m], latents[m] = row[j], j
                    m += mask[j]
        per_row[r] = m - before


@compiled
def by_latent(latents, rows, order, rows_in_order, offsets):
    """A counting sort: stable, and no comparison."""
    offsets[:] = 0
    for i in range(latents.shape[0]):
        offsets[latents[i]] += 1
    total = 0
    for j in range(offsets.shape[0]):
        count = offsets[j]
        offsets[j] = total
        total += count
    following = offsets.copy()
    for i in range(latents.shape[0]):
        j = latents[i]
        place = following[j]
        following[j] = place + 1
        order[place] = i
        rows_in_order[place] = rows[i]


@compiled
def _end_in_tile(index, i, end, high):
    """Where the entries i … end − 1 leave the tile below `high`."""
    while i < end and index[i] < high:
        i += 1
    return i


@summing
def weighted_sum(first, last, weights, index, table, tile, offsets, out):
    """out[b] = Σ weights[i] · table[index[i]] over the entries i of bag b. Four entries at a time.

    All bags take what they need from the first `tile` rows of the table, which stay in the cache meanwhile, then from the next ones.
    """
    bags, n, d = offsets.shape[0], index.shape[0], table.shape[1]
    zero, at = table.dtype.type(0), offsets[first:last].copy()
    for high in range(tile, max(1, table.shape[0]) + tile, tile):
        for b in range(first, last):
            i = at[b - first]
            end = _end_in_tile(index, i, n if b + 1 == bags else offsets[b + 1], high)
            at[b - first], o = end, out[b]
            if high == tile and end - i < 4:
                o[:] = zero
            elif high == tile:
                w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
                t0, t1, t2, t3 = table[index[i]], table[index[i + 1]], table[index[i + 2]], table[index[i + 3]]
                for c in range(d):
                    o[c] = w0 * t0[c] + w1 * t1[c] + w2 * t2[c] + w3 * t3[c]
                i += 4
            while i + 4 <= end:
                w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
                t0, t1, t2, t3 = table[index[i]], table[index[i + 1]], table[index[i + 2]], table[index[i + 3]]
                for c in range(d):
                    o[c] += w0 * t0[c] + w1 * t1[c] + w2 * t2[c] + w3 * t3[c]
                i += 4
            while i < end:
                w0, t0 = weights[i], table[index[i]]
                for c in range(d):
                    o[c] += w0 * t0[c]
                i += 1


@summing
def products(first, last, a, W, tile, latents, offsets, out):
    """⟨a[row], W[latent]⟩ at the entries of rows first:last. Four entries at a time; tile by tile of W, as `weighted_sum`."""
    rows, n, d = offsets.shape[0], latents.shape[0], a.shape[1]
    zero, at = a.dtype.type(0), offsets[first:last].copy()
    for high in range(tile, W.shape[0] + tile, tile):
        for r in range(first, last):
            i = at[r - first]
            end = _end_in_tile(latents, i, n if r + 1 == rows else offsets[r + 1], high)
            at[r - first], left = end, a[r]
            while i + 4 <= end:
                t0, t1, t2, t3 = W[latents[i]], W[latents[i + 1]], W[latents[i + 2]], W[latents[i + 3]]
                p0, p1, p2, p3 = zero, zero, zero, zero
                for c in range(d):
                    p0 += left[c] * t0[c]
                    p1 += left[c] * t1[c]
                    p2 += left[c] * t2[c]
                    p3 += left[c] * t3[c]
                out[i], out[i + 1], out[i + 2], out[i + 3] = p0, p1, p2, p3
                i += 4
            while i < end:
                t0, p0 = W[latents[i]], zero
                for c in range(d):
                    p0 += left[c] * t0[c]
                out[i] = p0
                i += 1


@summing
def project(first, last, gradient, W):
    """Takes from each row of the gradient its part along the same row of W."""
    for j in range(first, last):
        g, w = gradient[j], W[j]
        along, square = g.dtype.type(0), g.dtype.type(0)
        for c in range(w.shape[0]):
            along += g[c] * w[c]
            square += w[c] * w[c]
        share = along / square
        for c in range(w.shape[0]):
            g[c] -= share * w[c]


@summing
def normalise(first, last, W):
    """Divides each row by its norm."""
    for j in range(first, last):
        w = W[j]
        square = w.dtype.type(0)
        for c in range(w.shape[0]):
            square += w[c] * w[c]
        inverse = w.dtype.type(1) / max(np.sqrt(square), w.dtype.type(1e-12))
        for c in range(w.shape[0]):
            w[c] *= inverse
