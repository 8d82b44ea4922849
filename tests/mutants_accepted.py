"""Mutants that may survive: name -> why they compute what the original does."""

_NOT_TAKEN = "where doesn't take it; it is there so that nothing divides by 0"

ACCEPTED = {
  "token_weights/experts.py _ranks bound: return jnp.where(count > 1,"
  " mean_rank / (count - 1), 0.5)": _NOT_TAKEN,
  "token_weights/experts.py _ranks constant: return jnp.where(count > 1,"
  " mean_rank / jnp.maximum(count - 1, (0)), 0.5)": _NOT_TAKEN,
  "token_weights/mismatch.py sampler_mismatch constant: ratio *="
  " counts.sum() / jnp.where(total > 0, total, (2.0))": (
    "where the total is 0, so is what is multiplied"
  ),
}
