/* lowrt, the command: wakes lowrt's process from its snapshot (snapshot.c), from a read-only view of this file.
 *
 * Whoever forks containers shows them its own file: a container of root can open its first process's /proc/PID/exe for
 * writing, and would overwrite lowrt (CVE-2019-5736). Through a mount that is read-only, and that is in no tree, it cannot. So
 * for all commands but those that stay outside of containers the launcher starts itself once more, through such a view.
 * Without the privilege to make one (rootless) the file is not the user's to write either.
 *
 * Without a snapshot that fits, the interpreter is started, in the same way. */

#define _GNU_SOURCE
#include "snapshot.h"
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PYTHON "/usr/bin/python3"
#define LONGEST 4096

static const char *const valued[] = {"root", "log", "log-format", "rootless", "criu", 0}; /* flags, as lowrt/flags.py has them */
static const char *const outside[] = {"start", "state", "kill", "delete", "list", 0};

static int is_one_of(const char *word, const char *const *words)
{
    for (; word && *words; words++)
        if (!strcmp(word, *words))
            return 1;
    return 0;
}

/* The first of the arguments that is no flag, nor a flag's value; NULL if there is none. */
static const char *find_command(char **given)
{
    for (; *given && **given == '-'; given++) {
        const char *flag = *given + (given[0][1] == '-' ? 2 : 1);

        if (is_one_of(flag, valued) && given[1])
            given++;
    }
    return *given;
}

/* Where the launcher lies, into PATH: through the view its own path is only "/", and argv[0] tells. Whether this is the view. */
static int find_launcher(char path[LONGEST], const char *first)
{
    ssize_t length = readlink("/proc/self/exe", path, LONGEST - 1);
    int viewed = length == 1;

    path[length > 0 ? length : 0] = 0;
    if (viewed)
        snprintf(path, LONGEST, "%s", first ? first : "");
    return viewed;
}

/* Executes a file through a read-only view of it. Returns where that cannot be had. */
static void execute_view(const char *path, char **arguments, char **environment)
{
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY};
    int view = syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

    if (view >= 0 && syscall(SYS_mount_setattr, view, "", AT_EMPTY_PATH, &attributes, sizeof attributes) == 0)
        syscall(SYS_execveat, view, "", arguments, environment, AT_EMPTY_PATH);
    if (view >= 0)
        close(view);
}

static void start_interpreter(const char *folder, int count, char **given, char **environment)
{
    char program[2 * LONGEST];
    char *arguments[count + 3];

    snprintf(program, sizeof program, "%s/__main__.py", folder);
    /* -I and -S: nothing of the environment, and no site-packages. Paths and messages are UTF-8 whatever the caller's locale is:
     * config.json is, and no character set has to be looked for, above all not in a container's root. */
    arguments[0] = PYTHON;
    arguments[1] = "-ISXutf8";
    arguments[2] = program;
    for (int i = 1; i <= count; i++) /* with the NULL at the end */
        arguments[i + 2] = given[i];
    execute_view(PYTHON, arguments, environment);
    execve(PYTHON, arguments, environment);
    perror("lowrt: cannot start " PYTHON);
}

int main(int count, char **given, char **environment)
{
    char path[LONGEST], snapshot[LONGEST + 16];
    const char *command = count ? find_command(given + 1) : 0;
    int viewed = find_launcher(path, given[0]);
    char *slash = strrchr(path, '/');
    int file;

    if (!slash) {
        fprintf(stderr, "lowrt: cannot find its package by /proc/self/exe (is /proc mounted?)\n");
        return 1;
    }
    if (!viewed && !is_one_of(command, outside)) {
        given[0] = path;
        execute_view("/proc/self/exe", given, environment);
    }
    prctl(PR_SET_NAME, "lowrt");
    *slash = 0;
    snprintf(snapshot, sizeof snapshot, "%s/snapshot", path);
    file = open(snapshot, O_RDONLY | O_CLOEXEC);
    if (file >= 0)
        wake(file, path, (long *)given - 1); /* before argv stands argc */
    start_interpreter(path, count, given, environment);
    return 1;
}
