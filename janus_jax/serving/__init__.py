"""The page of `janus_jax.demo`: images generated for prompts, questions about images answered."""
