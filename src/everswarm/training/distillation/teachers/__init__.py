"""Teachers: what can say of a text how likely it is, or write one itself.

Takes texts of examples; gives them scored, in bytes.
Does not know shards, checkpoints or the student.
"""

from everswarm.training.distillation.teachers.at_work import TeacherAtWork, TeacherToOpen, Text

__all__ = ["TeacherAtWork", "TeacherToOpen", "Text"]
