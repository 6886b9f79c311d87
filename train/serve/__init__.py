"""A page to look at trained runs with: pictures found by a text, texts found by a picture, questions answered, and the
spikes behind each answer."""
