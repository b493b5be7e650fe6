"""The result of a call: the maps, and what they explain."""

from camlib.explanation.explanation import Explanation as Explanation
