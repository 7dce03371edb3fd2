"""What can be wrong with the course or with a request to it, said in one line."""


class CourseError(Exception):
    """A mistake that a person can mend; its text is one line that says where and how."""


class LessonError(CourseError):
    """A lesson breaks a rule of the course.

    Args:
        lesson: the lesson's key, such as `6_bilinear_sampling/1_sampling`.
        cell: the number of the cell at fault, counted from 1 as in JupyterLab; 0 for the header.
        message: what is wrong and what is expected.
    """

    def __init__(self, lesson: str, cell: int, message: str):
        self.lesson, self.cell, self.message = lesson, cell, message
        where = f"{lesson}, cell {cell}" if cell else f"{lesson}, header"
        super().__init__(f"{where}: {message}")
