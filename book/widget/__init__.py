"""Pictures with controls, in a kernel and in the built page."""
