/* What the compiled core needs from C: two clocks, one poll, a yield, a nap, and the place
 * in the caller's code without making a frame object. The interpreted core has the
 * same functions in _runtime.py. */
#ifndef FASTPOOL_CORE_C_H
#define FASTPOOL_CORE_C_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>
#include <pythread.h>
#include <time.h>

#ifdef _WIN32
#include <windows.h>
#else
#include <poll.h>
#include <sched.h>
#endif

#ifdef Py_GIL_DISABLED
#define FP_HAS_GIL 0
#else
#define FP_HAS_GIL 1
#endif

static inline double fp_clock(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The clock of time.monotonic(). */
static inline double fp_monotonic(void) { return fp_clock(CLOCK_MONOTONIC); }

/* The same clock at the resolution of the scheduler's tick (1-4 ms late), at a
 * quarter of the price: enough for ages, idle times and the leak watch. */
static inline double fp_coarse(void) {
#ifdef CLOCK_MONOTONIC_COARSE
    return fp_clock(CLOCK_MONOTONIC_COARSE);
#else
    return fp_clock(CLOCK_MONOTONIC);
#endif
}

/* What the kernel knows of this socket now; 0 = alive and silent. One system
 * call that never blocks, so the GIL is kept: dropping it costs more. */
static inline int fp_poll(int fd) {
#ifdef _WIN32
    (void)fd;
    return 0;
#else
    struct pollfd p;
    p.fd = fd;
    p.events = POLLIN;
#ifdef POLLRDHUP
    p.events |= POLLRDHUP;
#endif
    p.revents = 0;
    return poll(&p, 1, 0) == 1 ? p.revents : 0;
#endif
}

/* A number of the calling thread that no later thread gets, unlike its identifier. */
static inline unsigned long long fp_threadno(void) {
#ifdef PYPY_VERSION
    return PyThread_get_thread_ident();
#else
    return PyThreadState_Get()->id;
#endif
}

/* Has the thread with that number not ended? Threads come and go with the GIL held;
 * where there is none nothing is known. */
static inline int fp_lives(unsigned long long number) {
#if defined(PYPY_VERSION) || defined(Py_GIL_DISABLED)
    (void)number;
    return 1;
#else
    PyThreadState *thread = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (thread != NULL && thread->id != number)
        thread = PyThreadState_Next(thread);
    return thread != NULL;
#endif
}

/* What tells one living lease from another. */
static inline Py_ssize_t fp_token(PyObject *lease) { return (Py_ssize_t)lease; }

/* Let a thread run that waits for this processor, if there is one. Without the GIL. */
static inline void fp_give_way(void) {
#ifdef _WIN32
    SwitchToThread();
#else
    sched_yield();
#endif
}

/* Keep off the GIL until the thread that was just woken has it, on another processor
 * perhaps: a few tens of microseconds. Called without the GIL. */
static inline void fp_nap(void) {
    struct timespec t = {0, 1};
    nanosleep(&t, NULL);
}

/* Code object (new reference) and byte offset of the running instruction of the
 * Python code that called us; frames whose globals are *skip* or *also* are passed over.
 * The layouts are those of released interpreters and will not change; anything
 * newer pays for a frame object. */
#if defined(PYPY_VERSION) || PY_VERSION_HEX >= 0x030e0000
#define FP_FRAME_OBJECT 1
#elif PY_VERSION_HEX >= 0x030b0000
#ifndef Py_BUILD_CORE
#define Py_BUILD_CORE 1
#endif
#include "internal/pycore_frame.h"
#else
#include <frameobject.h>
#endif

static inline PyObject *fp_site(PyObject *skip, PyObject *also, int *lasti) {
#ifdef FP_FRAME_OBJECT
    PyFrameObject *frame = PyEval_GetFrame();
    Py_XINCREF(frame);
    while (frame != NULL) {
        PyObject *globals = PyFrame_GetGlobals(frame);
        Py_DECREF(globals);
        if (globals != skip && globals != also)
            break;
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    if (frame != NULL) {
        PyObject *code = (PyObject *)PyFrame_GetCode(frame);
        *lasti = PyFrame_GetLasti(frame);
        Py_DECREF(frame);
        return code;
    }
#elif PY_VERSION_HEX >= 0x030b0000
    PyThreadState *tstate = PyThreadState_GET();
#if PY_VERSION_HEX >= 0x030d0000
    struct _PyInterpreterFrame *frame = tstate->current_frame;
#else
    struct _PyInterpreterFrame *frame = tstate->cframe->current_frame;
#endif
#if PY_VERSION_HEX >= 0x030c0000
    /* Where C called Python lies a frame of the interpreter's own, without globals. */
    while (frame != NULL && (frame->owner == FRAME_OWNED_BY_CSTACK || frame->f_globals == skip ||
                             frame->f_globals == also))
        frame = frame->previous;
    if (frame != NULL) {
        *lasti = PyUnstable_InterpreterFrame_GetLasti(frame);
        return PyUnstable_InterpreterFrame_GetCode(frame);
    }
#else
    while (frame != NULL && (frame->f_globals == skip || frame->f_globals == also))
        frame = frame->previous;
    if (frame != NULL) {
        *lasti = _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT);
        return Py_NewRef((PyObject *)frame->f_code);
    }
#endif
#else
    PyFrameObject *frame = PyThreadState_GET()->frame;
    while (frame != NULL && (frame->f_globals == skip || frame->f_globals == also))
        frame = frame->f_back;
    if (frame != NULL) {
        *lasti = frame->f_lasti * (int)sizeof(_Py_CODEUNIT);
        return Py_NewRef((PyObject *)frame->f_code);
    }
#endif
    *lasti = -1;
    return Py_NewRef(Py_None);
}

#endif
