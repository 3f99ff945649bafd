"""The embedded world: pictures, captions and questions whose truth is known exactly. See the modules."""
