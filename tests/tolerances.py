"""Every numerical tolerance of the tests, each with the reason for its size.

Names say what is compared and how (`_RTOL` relative, `_ATOL` absolute). A tolerance is derived (rounding error of the
computation, repeats of a measurement), never fitted to a failing test; loosening one needs a reason in its comment.
"""
