/* lowrt: starts the interpreter with lowrt's own package, from a read-only view of its file.
 *
 * What the interpreter forks becomes containers, and a container of root can open its first process's /proc/PID/exe for
 * writing: CVE-2019-5736. Through a mount that is read-only, and that is in no tree, it cannot. The view costs 0.1 ms here;
 * made by the interpreter itself it would cost a second start of it. Without the privilege to make the view (rootless) the
 * interpreter's file is not the user's to write either.
 *
 * Two things are done here because time is saved by doing them first: the command's bundle of compiled modules is looked for
 * (see bundle.py), and cgroup v1 is woken (see wake_cgroups). */

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PYTHON "/usr/bin/python3"
#define LONGEST 4096

static int read_only_view(void)
{
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY};
    int view = syscall(SYS_open_tree, AT_FDCWD, PYTHON, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

    if (view >= 0 && syscall(SYS_mount_setattr, view, "", AT_EMPTY_PATH, &attributes, sizeof attributes) < 0) {
        close(view);
        return -1;
    }
    return view;
}

/* The command in the arguments, where it is one that has a bundle. A flag's value of that name does no harm: what the bundle
 * lacks is imported from files. */
static const char *find_command(int count, char **given)
{
    static const char *const commands[] = {"create", "run", "start", "exec", "state", "kill", "delete"};

    for (int i = 1; i < count; i++)
        for (size_t k = 0; k < sizeof commands / sizeof *commands; k++)
            if (!strcmp(given[i], commands[k]))
                return commands[k];
    return 0;
}

/* The program's path, into a buffer of LONGEST: the bundle for this command and interpreter, else the package's main. */
static int find_program(char *path, const char *command)
{
    char interpreter[256];
    ssize_t length = readlink("/proc/self/exe", path, LONGEST);
    ssize_t named = readlink(PYTHON, interpreter, sizeof interpreter - 1);
    char *slash = length > 0 ? memrchr(path, '/', length) : 0;
    char *name;

    if (!slash || slash - path > LONGEST - 300)
        return -1;
    if (named > 0 && command) {
        interpreter[named] = 0;
        name = strrchr(interpreter, '/');
        sprintf(slash, "/__pycache__/bundle.%.200s.%s.pyc", name ? name + 1 : interpreter, command);
        if (access(path, R_OK) == 0)
            return 0;
    }
    strcpy(slash, "/__main__.py");
    return 0;
}

/* The first write to a cgroup.procs of cgroup v1 after some idle time waits some 10 ms for all CPUs, whatever is written; the
 * next ones do not. So where the command will need it, a process that moves itself to where it is already begins that wait
 * while the interpreter starts. It is a "clone" child (no signal at its end, no plain wait sees it); lowrt reaps it. */
static void wake_cgroups(const char *command)
{
    char procs[LONGEST + 64], line[LONGEST];
    char *controller, *end;
    FILE *groups;
    int file;

    if (!command || (strcmp(command, "run") && strcmp(command, "create") && strcmp(command, "exec")))
        return;
    if (access("/sys/fs/cgroup/memory/cgroup.procs", W_OK) || syscall(SYS_clone, 0, 0, 0, 0, 0))
        return;
    groups = fopen("/proc/self/cgroup", "re");
    while (groups && fgets(line, sizeof line, groups)) {
        controller = strchr(line, ':');
        end = strchr(line, '\n');
        if (!controller || !end || strncmp(controller, ":memory:", 8))
            continue;
        *end = 0;
        sprintf(procs, "/sys/fs/cgroup/memory%s/cgroup.procs", controller + 8);
        file = open(procs, O_WRONLY | O_CLOEXEC);
        if (file < 0 || write(file, "0", 1) < 0)
            break;
    }
    _exit(0);
}

int main(int count, char **given, char **environment)
{
    char program[LONGEST + 1];
    char *arguments[count + 3];
    const char *command = find_command(count, given);
    int view;

    if (find_program(program, command) < 0) {
        fprintf(stderr, "lowrt: cannot find its package by /proc/self/exe (is /proc mounted?)\n");
        return 1;
    }
    wake_cgroups(command);
    /* -I and -S: nothing of the environment, and no site-packages. Paths and messages are UTF-8 whatever the caller's locale is:
     * config.json is, and no character set has to be looked for, above all not in a container's root. */
    arguments[0] = PYTHON;
    arguments[1] = "-ISXutf8";
    arguments[2] = program;
    for (int i = 1; i <= count; i++) /* with the NULL at the end */
        arguments[i + 2] = given[i];
    view = read_only_view();
    if (view >= 0)
        syscall(SYS_execveat, view, "", arguments, environment, AT_EMPTY_PATH);
    execve(PYTHON, arguments, environment);
    perror("lowrt: cannot start " PYTHON);
    return 1;
}
