"""A graph that reads the past of a decoder, as tests of feeds and of profiles want it."""

WITH_PAST = """
g (
  float[batch, 2, past, 8] past_keys, float[batch, 2, sequence, 8] new, int64[batch, total] attention_mask
) => (float[batch, 2, present, 8] shown)
{
  joined = Concat <axis = 2> (past_keys, new)
  mask = Cast <to = 1> (attention_mask)
  axes = Constant <value = int64[2] {1, 3}> ()
  column = Unsqueeze (mask, axes)
  shown = Mul (joined, column)
}
"""
