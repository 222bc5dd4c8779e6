"""The wire's version. Raised when a peer of the old version could misread a new frame; additions do not raise it."""

VERSION = 1
