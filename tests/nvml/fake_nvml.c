/*
 * A small libnvidia-ml.so.1 that plays cards and errors from a script, so that tests run the real
 * pynvml. Prototypes and numbers follow NVIDIA's published NVML interface.
 *
 * FAKE_NVML_SCRIPT names the script, read again at every call. Lines are
 *     VERB WHAT ID NUMBER
 * where ID is a device ("0", of a MIG instance "0:1", "-" for the library) or "*" for any:
 *     gpus    -       -   N      N cards (default 1)
 *     mig     -       ID  N      card ID is in MIG mode with N instances
 *     fail    FUNC    ID  CODE   FUNC (or "*") returns CODE
 *     hang    FUNC    ID  0      FUNC does not return while this line stands
 *     lose    -       ID  0      card ID is lost, until the line is gone and NVML started anew
 *     value   KEY     ID  N      reading KEY is N
 *     process PID     ID  BYTES  a compute process on ID
 * FAKE_NVML_CALLS names a file that gets one line "FUNC ID" for each call.
 * OLD_DRIVER compiles out the symbols that old drivers lack.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7,
       LOST = 15, VERSION_MISMATCH = 25 };
enum { CARDS = 16, INSTANCES = 7 };

typedef unsigned long long u64;
typedef struct { int gpu; int instance; char id[16]; } Card;  /* instance is -1 of a whole card */
typedef struct { unsigned pid; u64 used; unsigned gpu_instance; unsigned compute_instance; } Process;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned version, sensor; int celsius; } Temperature;

static Card cards[CARDS], instances[CARDS][INSTANCES];
static int lost[CARDS], started;

/* The NUMBER of the nth line that fits; 0 when there is none. WHAT is written back for "process". */
static int find(const char *verb, const char *what, const char *id, int nth, u64 *number,
                unsigned *pid)
{
    const char *path = getenv("FAKE_NVML_SCRIPT");
    FILE *script = path ? fopen(path, "r") : NULL;
    char line[256], has_verb[32], has_what[64], has_id[16];
    int found = 0;
    if (!script) return 0;
    while (!found && fgets(line, sizeof line, script)) {
        u64 value = 0;
        if (sscanf(line, "%31s %63s %15s %llu", has_verb, has_what, has_id, &value) != 4) continue;
        if (strcmp(has_verb, verb)) continue;
        if (what && strcmp(has_what, what) && strcmp(has_what, "*")) continue;
        if (strcmp(has_id, id) && strcmp(has_id, "*")) continue;
        if (nth-- > 0) continue;
        if (number) *number = value;
        if (pid) *pid = (unsigned)strtoul(has_what, NULL, 10);
        found = 1;
    }
    fclose(script);
    return found;
}

static u64 reading(const char *key, const Card *card, u64 usual)
{
    u64 value;
    return find("value", key, card->id, 0, &value, NULL) ? value : usual;
}

static void note(const char *function, const char *id)
{
    const char *path = getenv("FAKE_NVML_CALLS");
    FILE *calls = path ? fopen(path, "a") : NULL;
    if (!calls) return;
    fprintf(calls, "%s %s\n", function, id);
    fclose(calls);
}

/* What every call does first. Returns the code to return, OK to go on. */
static int enter(const char *function, const Card *card)
{
    const char *id = card ? card->id : "-";
    const struct timespec while_hung = {0, 5 * 1000 * 1000};
    u64 code;
    char gpu[16];
    note(function, id);
    while (find("hang", function, id, 0, NULL, NULL)) nanosleep(&while_hung, NULL);
    if (find("fail", function, id, 0, &code, NULL)) return (int)code;
    if (!started && strcmp(function, "nvmlInitWithFlags")) return UNINITIALIZED;
    if (card) {
        snprintf(gpu, sizeof gpu, "%d", card->gpu);
        if (find("lose", NULL, gpu, 0, NULL, NULL)) lost[card->gpu] = 1;
        if (lost[card->gpu]) return LOST;
    }
    return OK;
}

#define ENTER(card) do { int code_ = enter(__func__, card); if (code_) return code_; } while (0)
/* MIG instances have no board of their own. */
#define ENTER_BOARD(card) do { ENTER(card); if ((card)->instance >= 0) return NOT_SUPPORTED; } while (0)

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    ENTER(NULL);
    started = 1;
    for (int gpu = 0; gpu < CARDS; gpu++) {
        lost[gpu] = 0;
        cards[gpu] = (Card){.gpu = gpu, .instance = -1};
        snprintf(cards[gpu].id, sizeof cards[gpu].id, "%d", gpu);
        for (int n = 0; n < INSTANCES; n++) {
            instances[gpu][n] = (Card){.gpu = gpu, .instance = n};
            snprintf(instances[gpu][n].id, sizeof instances[gpu][n].id, "%d:%d", gpu, n);
        }
    }
    return OK;
}

int nvmlShutdown(void) { ENTER(NULL); started = 0; return OK; }

const char *nvmlErrorString(int code) { (void)code; return "scripted error"; }

int nvmlSystemGetDriverVersion(char *text, unsigned length)
{
    ENTER(NULL);
#ifdef OLD_DRIVER
    snprintf(text, length, "470.57.02");
#else
    snprintf(text, length, "580.65.06");
#endif
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    u64 number = 1;
    ENTER(NULL);
    find("gpus", NULL, "-", 0, &number, NULL);
    *count = (unsigned)number;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Card **card)
{
    if (index >= CARDS) return INVALID;
    ENTER(&cards[index]);
    *card = &cards[index];
    return OK;
}

int nvmlDeviceGetUUID(const Card *card, char *text, unsigned length)
{
    ENTER(card);
    if (card->instance >= 0)
        snprintf(text, length, "MIG-%08d-%04d", card->gpu, card->instance);
    else
        snprintf(text, length, "GPU-%08d", card->gpu);
    return OK;
}

int nvmlDeviceGetName(const Card *card, char *text, unsigned length)
{
    ENTER(card);
    snprintf(text, length, card->instance >= 0 ? "Fake H100 MIG 3g.40gb" : "Fake H100");
    if (reading("name_byte", card, 0)) text[0] = (char)reading("name_byte", card, 0);
    return OK;
}

int nvmlDeviceGetMemoryInfo(const Card *card, Memory *memory)
{
    ENTER(card);
    u64 reserved = reading("reserved", card, 1ULL << 29);
    memory->total = reading("total", card, 80ULL << 30);
    memory->used = reading("used", card, 40ULL << 30) + reserved;
    memory->free = reading("free", card, (80ULL << 30) - (40ULL << 30) - reserved);
    return OK;
}

int nvmlDeviceGetUtilizationRates(const Card *card, Utilization *rates)
{
    int mig = find("mig", NULL, card->id, 0, NULL, NULL);
    ENTER_BOARD(card);
    if (mig) return NOT_SUPPORTED;
    rates->gpu = (unsigned)reading("gpu_percent", card, 97);
    rates->memory = (unsigned)reading("memory_percent", card, 45);
    return OK;
}

int nvmlDeviceGetPowerUsage(const Card *card, unsigned *milliwatts)
{
    ENTER_BOARD(card);
    *milliwatts = (unsigned)reading("power", card, 512345);
    return OK;
}

int nvmlDeviceGetEnforcedPowerLimit(const Card *card, unsigned *milliwatts)
{
    ENTER_BOARD(card);
    *milliwatts = (unsigned)reading("power_limit", card, 700000);
    return OK;
}

int nvmlDeviceGetTotalEnergyConsumption(const Card *card, u64 *millijoules)
{
    ENTER_BOARD(card);
    *millijoules = reading("energy", card, 123456789);
    return OK;
}

int nvmlDeviceGetTemperature(const Card *card, unsigned sensor, unsigned *celsius)
{
    ENTER_BOARD(card);
    if (sensor != 0) return INVALID;
    *celsius = (unsigned)reading("celsius", card, 63);
    return OK;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(const Card *card, u64 *reasons)
{
    ENTER_BOARD(card);
    *reasons = reading("clock_events", card, 0x4);
    return OK;
}

int nvmlDeviceGetTotalEccErrors(const Card *card, unsigned type, unsigned counter, u64 *count)
{
    ENTER_BOARD(card);
    /* Other counters answer other numbers, so that asking the wrong one shows. */
    *count = type == 1 && counter == 0 ? reading("ecc", card, 3) : 99;
    return OK;
}

static int processes(const Card *card, unsigned *count, Process *list)
{
    unsigned room = *count, pid, n = 0;
    u64 bytes;
    for (; find("process", NULL, card->id, (int)n, &bytes, &pid); n++)
        if (list && n < room)
            list[n] = (Process){.pid = pid, .used = bytes, .gpu_instance = -1U,
                                .compute_instance = -1U};
    *count = n;
    return n > room || (n && !list) ? SMALL : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v2(const Card *card, unsigned *count, Process *list)
{
    ENTER(card);
    return processes(card, count, list);
}

#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(const Card *card, unsigned *count, Process *list)
{
    ENTER(card);
    return processes(card, count, list);
}

int nvmlDeviceGetMemoryInfo_v2(const Card *card, Memory2 *memory)
{
    ENTER(card);
    if (memory->version != 0x02000028) return VERSION_MISMATCH;
    memory->total = reading("total", card, 80ULL << 30);
    memory->reserved = reading("reserved", card, 1ULL << 29);
    memory->used = reading("used", card, 40ULL << 30);
    memory->free = reading("free", card, (80ULL << 30) - (40ULL << 30) - (1ULL << 29));
    return OK;
}

int nvmlDeviceGetTemperatureV(const Card *card, Temperature *temperature)
{
    ENTER_BOARD(card);
    if (temperature->version != 0x100000C) return VERSION_MISMATCH;
    if (temperature->sensor != 0) return INVALID;
    temperature->celsius = (int)reading("celsius", card, 64);
    return OK;
}

int nvmlDeviceGetCurrentClocksEventReasons(const Card *card, u64 *reasons)
{
    ENTER_BOARD(card);
    *reasons = reading("clock_events", card, 0x4);
    return OK;
}

int nvmlDeviceGetRemappedRows(const Card *card, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed)
{
    ENTER_BOARD(card);
    *corrected = 7;
    *uncorrected = 5;
    *pending = (unsigned)reading("remap_pending", card, 1);
    *failed = (unsigned)reading("remap_failed", card, 0);
    return OK;
}

int nvmlDeviceGetMigMode(const Card *card, unsigned *current, unsigned *pending)
{
    ENTER_BOARD(card);
    *current = *pending = (unsigned)find("mig", NULL, card->id, 0, NULL, NULL);
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(const Card *card, unsigned *count)
{
    ENTER_BOARD(card);
    *count = INSTANCES;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(const Card *card, unsigned index, Card **instance)
{
    u64 number = 0;
    ENTER_BOARD(card);
    find("mig", NULL, card->id, 0, &number, NULL);
    if (index >= number || index >= INSTANCES) return NOT_FOUND;
    /* What one instance of a card may not be seen is scripted by its own id. */
    ENTER(&instances[card->gpu][index]);
    *instance = &instances[card->gpu][index];
    return OK;
}
#endif
