/* lowrt.boot._sleep: where a process sleeps while snapshot.py saves it, and where its copies wake up (snapshot.c).
 *
 * Built by scripts/setup, against the stable ABI. x86-64 only. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include "snapshot.h"
#include <Python.h>
#include <signal.h>
#include <unistd.h>

/* Signals for which the interpreter has done something at its start, as far as they were not ignored. */
static const int arranged[] = {SIGINT, SIGPIPE, SIGXFSZ};
#define ARRANGED (sizeof arranged / sizeof *arranged)

static PyObject *strings(char **given)
{
    PyObject *list = PyList_New(0);

    for (; list && *given; given++) {
        PyObject *string = PyBytes_FromString(*given);

        if (!string || PyList_Append(list, string) < 0)
            Py_CLEAR(list);
        Py_XDECREF(string);
    }
    return list;
}

PyDoc_STRVAR(sleep_doc, "sleep() -> (arguments, environment)\n\n"
             "Stops with SIGTRAP, for a tracer that saves this process, and returns in each process that wakes from what was saved:\n"
             "that one's own arguments, and its environment as NAME=VALUE, lists of bytes.");

static PyObject *sleep_and_wake(PyObject *module, PyObject *nothing)
{
    struct sigaction actions[ARRANGED], inherited;
    char **arguments, **environment;
    long *stack = 0;

    (void)module, (void)nothing;
    for (size_t i = 0; i < ARRANGED; i++)
        sigaction(arranged[i], 0, &actions[i]);
    /* A process that wakes has three registers from here, and in rax where the kernel has put its arguments. */
    __asm__ volatile("int3"
                     : "+a"(stack)
                     :
                     : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    if (!stack) {
        PyErr_SetString(PyExc_RuntimeError, "sleep: nobody has saved this process");
        return NULL;
    }
    brk(0); /* tells the C library where this process's break is; the saved heap's was elsewhere */
    for (size_t i = 0; i < ARRANGED; i++) {
        sigaction(arranged[i], 0, &inherited);
        if (inherited.sa_handler == SIG_DFL)
            sigaction(arranged[i], &actions[i], 0);
    }
    arguments = (char **)(stack + 1);
    environment = arguments + *stack + 1;
    environ = environment;
    return Py_BuildValue("NN", strings(arguments), strings(environment));
}

PyDoc_STRVAR(cpu_doc, "cpu() -> bytes\n\nWhat the processor can do, as a snapshot's header has it.");

static PyObject *cpu(PyObject *module, PyObject *nothing)
{
    uint32_t words[CPU_WORDS];

    (void)module, (void)nothing;
    know_cpu(words);
    return PyBytes_FromStringAndSize((const char *)words, sizeof words);
}

static PyMethodDef methods[] = {
    {"sleep", sleep_and_wake, METH_NOARGS, sleep_doc},
    {"cpu", cpu, METH_NOARGS, cpu_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_sleep", "A process's sleep and waking.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__sleep(void)
{
    return PyModule_Create(&definition);
}
