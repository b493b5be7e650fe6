"""One call from a picture to its explanation."""

from camlib.explaining.one_call import explain as explain
