"""The tests of the library and of the example; modules without `test_` in their name are what several tests share."""
