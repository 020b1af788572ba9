"""The pictures of the book, a file per picture."""
