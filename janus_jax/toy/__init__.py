"""The toy world: scenes, captions and questions whose truth is known exactly; judges of them; its pretrained parts."""
