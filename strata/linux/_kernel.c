/* strata.linux._kernel: syscall(2) for Python, which has no function for the calls that make containers.
 *
 * ctypes could do it too, and did: but it is 1 ms of every start of lowrt, and three times as slow at each call.
 * Built by scripts/setup, against the stable ABI. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <errno.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 6 /* arguments of a system call */

PyDoc_STRVAR(call_doc, "call(number, *arguments) -> int\n\n"
             "One system call. An argument is an int (a whole register), an object with a buffer (its address: bytes to be read,\n"
             "a bytearray to be written too), or None (NULL). Raises OSError with the kernel's errno.");

static PyObject *kernel_call(PyObject *module, PyObject *arguments)
{
    Py_ssize_t count = PyTuple_Size(arguments);
    long words[MOST + 1] = {0}, result = -1;
    Py_buffer buffers[MOST + 1];
    int held = 0, code = 0;

    (void)module;
    if (count < 1 || count > MOST + 1) {
        PyErr_SetString(PyExc_TypeError, "a system call has a number and at most 6 arguments");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *argument = PyTuple_GetItem(arguments, i);

        if (PyLong_Check(argument)) {
            words[i] = (long)PyLong_AsUnsignedLongMask(argument);
        } else if (argument != Py_None) {
            if (PyObject_GetBuffer(argument, &buffers[held], PyBUF_SIMPLE) < 0)
                goto release;
            words[i] = (long)buffers[held++].buf;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    result = syscall(words[0], words[1], words[2], words[3], words[4], words[5], words[6]);
    code = errno;
    Py_END_ALLOW_THREADS
release:
    while (held)
        PyBuffer_Release(&buffers[--held]);
    if (PyErr_Occurred())
        return NULL;
    if (result == -1) {
        errno = code;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(result);
}

#ifdef __x86_64__
PyDoc_STRVAR(clone_and_end_doc, "clone_and_end(arguments) -> int\n\n"
             "clone3(2) for a child that shares this process's memory while this process waits in the call (CLONE_VM, CLONE_VFORK).\n"
             "Returns 0, in the child only: once that executes a program or ends, this process ends too, a little later, with status 0,\n"
             "and touches nothing of what the child has left. arguments: a struct clone_args. Raises OSError.");

/* Taking down what the two had together is work for a CPU that the program or whoever waits for it may want just then. */
static const struct timespec later = {.tv_sec = 0, .tv_nsec = 20 * 1000 * 1000};

static PyObject *kernel_clone_and_end(PyObject *module, PyObject *argument)
{
    Py_buffer arguments;
    long result;

    (void)module;
    if (PyObject_GetBuffer(argument, &arguments, PyBUF_SIMPLE) < 0)
        return NULL;
    /* Not one instruction of the parent's may use its stack, which the child has gone on with. */
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jle 1f\n\t"
                     "mov %[nanosleep], %%eax\n\t"
                     "mov %[later], %%rdi\n\t"
                     "xor %%esi, %%esi\n\t"
                     "syscall\n\t"
                     "mov %[exit_group], %%eax\n\t"
                     "xor %%edi, %%edi\n\t"
                     "syscall\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)SYS_clone3), "D"(arguments.buf), "S"(arguments.len), [later] "r"(&later),
                       [nanosleep] "i"(SYS_nanosleep), [exit_group] "i"(SYS_exit_group)
                     : "rcx", "r11", "memory");
    PyBuffer_Release(&arguments);
    if (result < 0) {
        errno = (int)-result;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(result);
}

PyDoc_STRVAR(play_doc, "play(arguments, function) -> int\n\n"
             "Calls a function in a child of clone3(2) that shares this process's memory, and so all that the interpreter learns, while\n"
             "this process waits (CLONE_VM, CLONE_VFORK). arguments: a struct clone_args. Returns 0, or 1 where the function has raised.\n"
             "If the child is killed meanwhile this process ends with status 255. Raises OSError.");

struct play {
    PyObject *function;
    int status;
};

static void play_function(struct play *play)
{
    PyObject *result = PyObject_CallNoArgs(play->function);

    play->status = result == NULL;
    if (result)
        Py_DECREF(result);
    else
        PyErr_Clear();
    _exit(0);
}

static PyObject *kernel_play(PyObject *module, PyObject *objects)
{
    static const char killed[] = "killed while it shared its memory with a child\n";
    struct play play = {.status = -1};
    PyObject *argument;
    Py_buffer arguments;
    long result;

    (void)module;
    if (!PyArg_ParseTuple(objects, "OO", &argument, &play.function) || PyObject_GetBuffer(argument, &arguments, PyBUF_SIMPLE) < 0)
        return NULL;
    /* The child uses the stack below this function's frame, to which it never comes back. */
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "mov %[play], %%rdi\n\t"
                     "call *%[function]\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)SYS_clone3), "D"(arguments.buf), "S"(arguments.len), [play] "r"(&play),
                       [function] "r"(play_function)
                     : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory");
    PyBuffer_Release(&arguments);
    if (result < 0) {
        errno = (int)-result;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    waitpid((pid_t)result, NULL, 0); /* With CLONE_PARENT it is another's child. */
    if (play.status < 0) { /* It has ended in the middle of the function, and the interpreter believes to be there still. */
        if (write(2, killed, sizeof killed - 1)) {
        }
        _exit(255);
    }
    return PyLong_FromLong(play.status);
}
#endif

PyDoc_STRVAR(address_doc, "address(buffer) -> int\n\n"
             "Where the bytes of an object are, for structures that point to them. The object must outlive the pointer.");

static PyObject *kernel_address(PyObject *module, PyObject *argument)
{
    Py_buffer buffer;
    PyObject *address;

    (void)module;
    if (PyObject_GetBuffer(argument, &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    address = PyLong_FromVoidPtr(buffer.buf);
    PyBuffer_Release(&buffer);
    return address;
}

static PyMethodDef methods[] = {
    {"call", kernel_call, METH_VARARGS, call_doc},
    {"address", kernel_address, METH_O, address_doc},
#ifdef __x86_64__
    {"clone_and_end", kernel_clone_and_end, METH_O, clone_and_end_doc},
    {"play", kernel_play, METH_VARARGS, play_doc},
#endif
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernel", "System calls that Python has no function for.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModule_Create(&definition);
}
