"""What norm_triton has a GPU do: BatchNorm's sums and results, forward and back, in Triton.

A map is channels last: rows are pixels, [batches * rows, channels]. Sums are float32 within a program, about a value
that is near the mean; what programs found is joined by others, in one order.
"""

from lead_ray.triton_code import constexpr, kernel, tl


@kernel
def moments(x, means, squares, rows, channels, share, ROWS: constexpr, CHANNELS: constexpr, AT_ONCE: constexpr):
    """Of a share of a batch's rows: the mean, and the sum of squared distances from it."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part, batch = tl.program_id(1), tl.program_id(2)
    known = channel < channels
    begin = part * share
    end = tl.minimum(begin + share, rows)
    x += batch.to(tl.int64) * rows * channels
    row = begin + tl.arange(0, ROWS)
    place = row[:, None].to(tl.int64) * channels + channel[None, :]
    first = tl.load(x + place, mask=(row < end)[:, None] & known[None, :], other=0.0).to(tl.float32)
    near = tl.sum(first, 0) / tl.minimum(end - begin, ROWS).to(tl.float32)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    square = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(begin, end, AT_ONCE * ROWS):
        for number in tl.static_range(AT_ONCE):
            row = start + number * ROWS + tl.arange(0, ROWS)
            mask = (row < end)[:, None] & known[None, :]
            place = row[:, None].to(tl.int64) * channels + channel[None, :]
            value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
            apart = tl.where(mask, value - near[None, :], 0.0)
            total += apart
            square += apart * apart
    count = (end - begin).to(tl.float32)
    away = tl.sum(total, 0) / count
    found = (batch * tl.num_programs(1) + part) * channels + channel
    tl.store(means + found, near + away, mask=known)
    tl.store(squares + found, tl.sum(square, 0) - count * away * away, mask=known)


@kernel
def join_moments(
    means, squares, weight, bias, running_mean, running_variance, tracked, mean_out, inverse_out, scale_out, shift_out,
    rows, channels, share, shares, eps, momentum, TRACKING: constexpr, BATCHES: constexpr, SHARES: constexpr,
    CHANNELS: constexpr,
):  # fmt: skip
    """Of all shares: mean, 1 / deviation, and what the result is of a value: scale * value + shift.

    TRACKING: whether the running statistics follow.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.arange(0, SHARES)
    known = channel < channels
    mask = (part < shares)[:, None] & known[None, :]
    count = tl.where(part < shares, tl.minimum(share, rows - part * share), 0).to(tl.float32)[:, None]
    w = tl.load(weight + channel, mask=known, other=0.0)
    b = tl.load(bias + channel, mask=known, other=0.0)
    followed_mean = tl.load(running_mean + channel, mask=known, other=0.0)
    followed_variance = tl.load(running_variance + channel, mask=known, other=0.0)
    for batch in tl.static_range(BATCHES):
        place = (batch * shares + part)[:, None] * channels + channel[None, :]
        own = tl.load(means + place, mask=mask, other=0.0)
        square = tl.load(squares + place, mask=mask, other=0.0)
        mean = tl.sum(count * own, 0) / rows
        apart = tl.where(mask, own - mean[None, :], 0.0)
        # What is infinite gets no number, as torch gives it none: so no maximum with 0 that would hide it.
        variance = tl.sum(square + count * apart * apart, 0) / rows
        inverse = 1 / tl.sqrt(variance + eps)
        found = batch * channels + channel
        tl.store(mean_out + found, mean, mask=known)
        tl.store(inverse_out + found, inverse, mask=known)
        tl.store(scale_out + found, inverse * w, mask=known)
        tl.store(shift_out + found, b - mean * inverse * w, mask=known)
        followed_mean += momentum * (mean - followed_mean)
        followed_variance += momentum * (variance * (rows / (rows - 1.0)) - followed_variance)
    if TRACKING:
        tl.store(running_mean + channel, followed_mean, mask=known)
        tl.store(running_variance + channel, followed_variance, mask=known)
        if tl.program_id(0) == 0:
            tl.store(tracked, tl.load(tracked) + BATCHES)


@kernel
def _finish(value, other, y, place, mask, ADDED: constexpr, RELU: constexpr):
    """relu(value + other), stored."""
    if ADDED:
        value += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0, 0.0, value)  # and not maximum(), which would hide what is no number
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@kernel
def apply(
    x, other, y, scale, shift, rows, channels, ADDED: constexpr, RELU: constexpr, ROWS: constexpr, CHANNELS: constexpr
):
    """relu(scale * x + shift + other) of some rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(2)
    known = channel < channels
    mask = (row < rows)[:, None] & known[None, :]
    place = (batch.to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]
    factor = tl.load(scale + batch * channels + channel, mask=known, other=0.0)
    offset = tl.load(shift + batch * channels + channel, mask=known, other=0.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    _finish(value, other, y, place, mask, ADDED, RELU)


@kernel
def frozen(
    x, other, y, weight, bias, mean, variance, eps, rows, channels,
    ADDED: constexpr, RELU: constexpr, ROWS: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    """relu(norm(x) + other) of some rows, from running statistics."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    mask = (row < rows)[:, None] & known[None, :]
    place = row[:, None].to(tl.int64) * channels + channel[None, :]
    factor = tl.load(weight + channel, mask=known, other=0.0)
    factor /= tl.sqrt(tl.load(variance + channel, mask=known, other=1.0) + eps)
    offset = tl.load(bias + channel, mask=known, other=0.0) - factor * tl.load(mean + channel, mask=known, other=0.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    _finish(value, other, y, place, mask, ADDED, RELU)


@kernel
def slopes(
    x, gradient, result, passed, totals, slopes, mean, scale, shift, rows, channels, share,
    ADDED: constexpr, RELU: constexpr, ROWS: constexpr, CHANNELS: constexpr, AT_ONCE: constexpr,
):  # fmt: skip
    """Of a share of a batch's rows: sums of gradients past the ReLU, and of those times distances from the mean."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part, batch = tl.program_id(1), tl.program_id(2)
    known = channel < channels
    begin = part * share
    end = tl.minimum(begin + share, rows)
    of_batch = batch * channels + channel
    centre = tl.load(mean + of_batch, mask=known, other=0.0)
    factor = tl.load(scale + of_batch, mask=known, other=0.0)
    offset = tl.load(shift + of_batch, mask=known, other=0.0)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    slope = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(begin, end, AT_ONCE * ROWS):
        for number in tl.static_range(AT_ONCE):
            row = start + number * ROWS + tl.arange(0, ROWS)
            mask = (row < end)[:, None] & known[None, :]
            place = (batch.to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]
            value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
            slanted = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
            if RELU:
                if ADDED:
                    through = tl.load(result + place, mask=mask, other=0.0).to(tl.float32)
                else:
                    through = value * factor[None, :] + offset[None, :]
                slanted = tl.where(through <= 0, 0.0, slanted)  # what is no number lets all through, as torch's does
                if ADDED:  # the shortcut's gradient, too
                    tl.store(passed + place, slanted.to(passed.dtype.element_ty), mask=mask)
            total += slanted
            slope += tl.where(mask, slanted * (value - centre[None, :]), 0.0)
    found = (batch * tl.num_programs(1) + part) * channels + channel
    tl.store(totals + found, tl.sum(total, 0), mask=known)
    tl.store(slopes + found, tl.sum(slope, 0), mask=known)


@kernel
def join_slopes(
    totals, slopes, inverse, scale, of_weight, of_bias, along_out, constant_out, rows, channels, shares,
    BATCHES: constexpr, SHARES: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    """Of all shares: gradients of weight and bias, and what is added to a value's own gradient."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.arange(0, SHARES)
    known = channel < channels
    mask = (part < shares)[:, None] & known[None, :]
    weight_gradient = tl.zeros((CHANNELS,), tl.float32)
    bias_gradient = tl.zeros((CHANNELS,), tl.float32)
    for batch in tl.static_range(BATCHES):
        place = (batch * shares + part)[:, None] * channels + channel[None, :]
        total = tl.sum(tl.load(totals + place, mask=mask, other=0.0), 0)
        slope = tl.sum(tl.load(slopes + place, mask=mask, other=0.0), 0)
        found = batch * channels + channel
        own = tl.load(inverse + found, mask=known, other=0.0)
        factor = tl.load(scale + found, mask=known, other=0.0)
        tl.store(along_out + found, -factor * own * own * slope / rows, mask=known)
        tl.store(constant_out + found, -factor * total / rows, mask=known)
        weight_gradient += slope * own
        bias_gradient += total
    tl.store(of_weight + channel, weight_gradient, mask=known)
    tl.store(of_bias + channel, bias_gradient, mask=known)


@kernel
def gradient(
    x, passed, back, mean, scale, shift, along, constant, rows, channels,
    MASKED: constexpr, ROWS: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    """scale * gradient + along * (x - mean) + constant of some rows; MASKED: ReLU is still to be passed."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(2)
    known = channel < channels
    mask = (row < rows)[:, None] & known[None, :]
    place = (batch.to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]
    of_batch = batch * channels + channel
    factor = tl.load(scale + of_batch, mask=known, other=0.0)
    centre = tl.load(mean + of_batch, mask=known, other=0.0)
    inclined = tl.load(along + of_batch, mask=known, other=0.0)
    level = tl.load(constant + of_batch, mask=known, other=0.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    slanted = tl.load(passed + place, mask=mask, other=0.0).to(tl.float32)
    if MASKED:
        offset = tl.load(shift + of_batch, mask=known, other=0.0)
        slanted = tl.where(value * factor[None, :] + offset[None, :] <= 0, 0.0, slanted)
    found = factor[None, :] * slanted + inclined[None, :] * (value - centre[None, :]) + level[None, :]
    tl.store(back + place, found.to(back.dtype.element_ty), mask=mask)
