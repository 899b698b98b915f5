# C functions of the compiled core; the interpreted one has them in _runtime.py.

cdef extern from "_core_c.h" nogil:
    double monotonic "fp_monotonic"()
    double coarse "fp_coarse"()
    int poll "fp_poll"(int fd)
    void give_way "fp_give_way"()
    void nap "fp_nap"()

cdef extern from "_core_c.h":
    const bint HAS_GIL "FP_HAS_GIL"
    object site "fp_site"(object skip, object also, int *lasti)
    unsigned long ident "PyThread_get_thread_ident"()
    bint lives "fp_lives"(unsigned long long number)
    unsigned long long threadno "fp_threadno"()
    Py_ssize_t token "fp_token"(object lease)
