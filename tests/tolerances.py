"""Every numerical tolerance of the tests, each with the reason for its size.

Names say what is compared and how (`_RTOL` relative, `_ATOL` absolute). A tolerance is derived (rounding error of the
computation, repeats of a measurement), never fitted to a failing test; loosening one needs a reason in its comment.
"""

# Of a gradient's largest element: float32 sums of a batch in 8 shares instead of one (measured 1e-6).
DATA_PARALLEL_GRADIENT_RTOL = 1e-5

# Float32 against NumPy's float64, or against another order of the same sums, through a whole tiny model: values near 1.
MODEL_ATOL = 2e-5
MODEL_RTOL = 2e-5

# A few float32 operations per value: sums of at most eight scores, one division.
ROUTING_RTOL = 2e-6

# Sums of up to 300 products of standard normal values in another order.
GROUPED_ATOL = 2e-4

# Of the largest element: float32 sums of 300 products of values that are equal to the last bit.
FP8_PRODUCT_RTOL = 1e-5

# Sums of fewer than a thousand float64 numbers against the same formula written another way.
FLOAT64_SUM_RTOL = 1e-12

# Mean losses of float32 logits against float64: log-sum-exp over the vocabulary and sums of a few hundred terms.
FLOAT32_LOSS_RTOL = 1e-5

# train: sums of at most a few hundred float32 terms of order 1; each step rounds by 6e-8
LOSS_RTOL = 1e-5
LOSS_ATOL = 1e-5
# train: one changed token moves a term by more than 1e-4 at this size; a term that may not move differs by rounding only
INFLUENCE_ATOL = 1e-5
# train: a handful of float32 operations on one number
SCHEDULE_RTOL = 1e-6
# train: float32 gradients summed in another order, relative to the largest element of each array
GRADIENT_RTOL = 2e-5

# Share of 40,000 draws: five standard deviations of a share of one quarter.
DROPOUT_MEAN_ATOL = 0.011

# Relative error of the mean loss of a tiny model: bfloat16 rounds each activation by up to 2**-9, E4M3 by up to 2**-4;
# over the logits of the vocabulary most of it cancels.
LOW_PRECISION_LOSS_RTOL = {"bf16": 2.0**-8, "fp8": 2.0**-5}
# Norm of the difference of whole gradients over the norm: a few roundings in a row; a wrong product gives about 1.
LOW_PRECISION_GRADIENT_RTOL = {"bf16": 0.05, "fp8": 0.3}
# Of the largest update: two moments rounded by 2**-9 each, three times, and a square root.
BFLOAT16_MOMENTS_RTOL = 2.0**-6
