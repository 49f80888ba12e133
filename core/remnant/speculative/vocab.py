"""VocabTrim: a drafter proposes only tokens that its target really writes, and so reads fewer rows of its head.

The parts: `vocab_map` (ids there and back, the head), `vocab_counts` and `vocab_specials` (which tokens),
`vocab_mixture` (several kinds of text), `vocab_measure` (acceptance), `vocab_choose` (how many), `vocab_checkpoint` and
`vocab_write` (files), `vocab_table` and `vocab_report` (figures), and `vocab_trim` that joins them. `eagle3` runs an
EAGLE-3 drafter, `eagle3_pair` both of them over one text.
"""

from remnant.speculative.vocab_choose import StepCost, choose_k, geometric_grid
from remnant.speculative.vocab_map import VocabMap, trim_head
from remnant.speculative.vocab_mixture import Domain, keep_for

__all__ = ["Domain", "StepCost", "VocabMap", "choose_k", "geometric_grid", "keep_for", "trim_head"]
