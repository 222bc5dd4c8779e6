/* A stage's layers for a batch of steps, in one call: every thread walks the same phases, meets the others at a barrier
 * between them, and takes pieces of the current phase from a common counter. Which thread computes an output never
 * changes how it is computed. Knows threads and the order of a layer; the arithmetic is kernels.h.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#define MAX_THREADS 256
#define SPINS 2000 /* about the length of a phase; then give the core to whoever wants it, maybe the one waited for */

struct row { /* where a row of the batch belongs */
    const struct step *step;
    int64_t position;
};

struct engine {
    const struct kernels *kernels;
    int threads;

    /* the team: helpers sleep between runs */
    pthread_t helpers[MAX_THREADS];
    pthread_mutex_t lock;
    pthread_cond_t started;
    uint64_t run; /* counts runs, under the lock */
    int stopping;
    atomic_int arrived;
    atomic_uint phase;
    atomic_llong next; /* piece of the current phase that nobody has taken */

    /* the run */
    const struct stage *stage;
    const struct step *steps;
    int64_t num_steps, rows;
    struct row *row;
    int64_t *first_row; /* of each step */
    float *logits;      /* [steps that sample, vocab], the caller's */
    float *hidden, *qkv, *gate_up, *turns; /* [rows, ...]; turns: cosines, then sines, [rows, head_dim] */
    float *scores;                         /* [threads, longest + 8] */
    int64_t longest;
    struct activations narrow, wide, heads; /* [rows, hidden], [rows, intermediate], [rows, heads * head_dim] */
    struct activations sampled;             /* [steps that sample, hidden]; no rows unless the stage is last */
    char *memory;
    size_t memory_bytes;
};

static void pause_a_little(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Nobody passes before everybody has come; the last one prepares the counter of the next phase. */
static void meet(struct engine *e)
{
    if (e->threads == 1) {
        atomic_store_explicit(&e->next, 0, memory_order_relaxed);
        return;
    }
    const unsigned phase = atomic_load_explicit(&e->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&e->arrived, 1, memory_order_acq_rel) == e->threads - 1) {
        atomic_store_explicit(&e->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&e->next, 0, memory_order_relaxed);
        atomic_store_explicit(&e->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&e->phase, memory_order_acquire) == phase;) {
        if (spins < SPINS) spins++, pause_a_little();
        else sched_yield();
    }
}

/* The next `size` of `total` pieces: whether there are any, and [*first, *last). */
static int take(struct engine *e, int64_t total, int64_t size, int64_t *first, int64_t *last)
{
    *first = atomic_fetch_add_explicit(&e->next, size, memory_order_relaxed);
    *last = *first + size < total ? *first + size : total;
    return *first < total;
}

static int is_quantised(const struct matrix *w) { return w->type > BF16; }

/* --- phases: each thread runs them, each piece is done once ------------------------------------------------------ */

static void enter(struct engine *e)
{
    const int64_t width = e->stage->hidden;
    for (int64_t first, m; take(e, e->rows, 1, &first, &m);) {
        const struct step *step = e->row[first].step;
        const int64_t t = e->row[first].position - step->position;
        float *out = e->hidden + first * width;
        if (step->ids) e->kernels->dequantise(&e->stage->embedding, step->ids[t], out);
        else for (int64_t k = 0; k < width; k++) out[k] = step->input[t * width + k];
        /* As torch has it: the angle in single precision. The turn in double, so that every libm rounds to the same. */
        const int64_t half = e->stage->head_dim / 2;
        float *cosines = e->turns + first * 2 * half, *sines = cosines + half;
        for (int64_t k = 0; k < half; k++) {
            const float angle = (float)e->row[first].position * e->stage->frequencies[k];
            cosines[k] = (float)cos(angle), sines[k] = (float)sin(angle);
        }
    }
    meet(e);
}

static void norm(struct engine *e, const float *weight, int quantised)
{
    const int64_t width = e->stage->hidden;
    for (int64_t m, last; take(e, e->rows, 1, &m, &last);) {
        e->kernels->norm(e->hidden + m * width, weight, e->stage->norm_eps, width, e->narrow.x + m * width);
        if (quantised) e->kernels->quantise(&e->narrow, m);
    }
    meet(e);
}

/* Up to three matrices that read the same activations; their outputs lie side by side. */
static void multiply(struct engine *e, const struct matrix *const *w, int count, const struct activations *a, float *out,
                     int64_t stride, int add)
{
    int64_t total = 0, first, last;
    for (int i = 0; i < count; i++) total += w[i]->rows;
    /* Some pieces for each thread, so that a slow one holds nobody up; few enough rows to stay in the first cache. */
    int64_t size = total / (4 * e->threads) / 4 * 4;
    size = size < 4 ? 4 : size > 32 ? 32 : size;
    while (take(e, total, size, &first, &last)) {
        int64_t start = 0;
        for (int i = 0; i < count; start += w[i++]->rows) {
            const int64_t from = first > start ? first - start : 0;
            const int64_t to = last - start < w[i]->rows ? last - start : w[i]->rows;
            if (from < to) e->kernels->multiply(w[i], from, to, a, out + start, stride, add);
        }
    }
    meet(e);
}

static void turn(float *x, const float *cosines, const float *sines, int64_t half)
{
    for (int64_t k = 0; k < half; k++) {
        const float a = x[k], b = x[k + half];
        x[k] = a * cosines[k] - b * sines[k];
        x[k + half] = b * cosines[k] + a * sines[k];
    }
}

/* Turn queries and keys; put keys and values where the session keeps them. */
static void remember(struct engine *e, int64_t layer)
{
    const struct stage *s = e->stage;
    const int64_t dim = s->head_dim, half = dim / 2, stride = (s->heads + 2 * s->kv_heads) * dim;
    for (int64_t m, last; take(e, e->rows, 1, &m, &last);) {
        const struct step *step = e->row[m].step;
        const float *cosines = e->turns + m * dim, *sines = cosines + half;
        float *x = e->qkv + m * stride;
        for (int h = 0; h < s->heads + s->kv_heads; h++) turn(x + h * dim, cosines, sines, half);
        for (int h = 0; h < 2 * s->kv_heads; h++) { /* all keys, then all values, here as in the cache */
            float *kept = step->cache + ((layer * 2 * s->kv_heads + h) * step->max_tokens + e->row[m].position) * dim;
            for (int64_t k = 0; k < dim; k++) kept[k] = x[(s->heads + h) * dim + k];
        }
    }
    meet(e);
}

static void attend(struct engine *e, int64_t layer, int thread)
{
    const struct stage *s = e->stage;
    const int64_t dim = s->head_dim, stride = (s->heads + 2 * s->kv_heads) * dim, group = s->heads / s->kv_heads;
    const float scale = 1.0f / sqrtf((float)dim);
    for (int64_t piece, last; take(e, e->rows * s->heads, 1, &piece, &last);) {
        const int64_t m = piece / s->heads, head = piece % s->heads;
        const struct step *step = e->row[m].step;
        const float *keys = step->cache + (layer * 2 * s->kv_heads + head / group) * step->max_tokens * dim;
        e->kernels->attend(e->qkv + m * stride + head * dim, keys, keys + s->kv_heads * step->max_tokens * dim,
                           e->row[m].position + 1, dim, scale, e->scores + thread * (e->longest + 8),
                           e->heads.x + (m * s->heads + head) * dim);
    }
    meet(e);
}

static void quantise(struct engine *e, struct activations *a)
{
    for (int64_t m, last; take(e, e->rows, 1, &m, &last);) e->kernels->quantise(a, m);
    meet(e);
}

static void activate(struct engine *e, int quantised)
{
    const int64_t width = e->stage->intermediate;
    for (int64_t m, last; take(e, e->rows, 1, &m, &last);) {
        const float *gate = e->gate_up + m * 2 * width;
        e->kernels->swiglu(gate, gate + width, width, e->wide.x + m * width);
        if (quantised) e->kernels->quantise(&e->wide, m);
    }
    meet(e);
}

/* Hidden states out; on the last stage the logits of the rows that ask for them, as one batch. */
static void leave(struct engine *e)
{
    const struct stage *s = e->stage;
    const int64_t width = s->hidden;
    for (int64_t i, last; take(e, e->num_steps, 1, &i, &last);) {
        const struct step *step = e->steps + i;
        const float *hidden = e->hidden + e->first_row[i] * width;
        if (step->output) memcpy(step->output, hidden, (size_t)(step->num_tokens * width) * sizeof(float));
    }
    meet(e);
    if (!e->sampled.rows) return;
    for (int64_t i, last; take(e, e->num_steps, 1, &i, &last);) {
        if (!e->steps[i].sample) continue;
        int64_t m = 0; /* among those that sample */
        for (int64_t before = 0; before < i; before++) m += e->steps[before].sample != 0;
        const float *hidden = e->hidden + (e->first_row[i] + e->steps[i].num_tokens - 1) * width;
        e->kernels->norm(hidden, s->final_norm, s->norm_eps, width, e->sampled.x + m * width);
        if (is_quantised(&s->head)) e->kernels->quantise(&e->sampled, m);
    }
    meet(e);
    const struct matrix *head = &s->head;
    multiply(e, &head, 1, &e->sampled, e->logits, head->rows, 0);
}

static void walk(struct engine *e, int thread)
{
    const struct stage *s = e->stage;
    const int64_t heads = (s->heads + 2 * s->kv_heads) * s->head_dim;
    enter(e);
    for (int32_t i = 0; i < s->num_layers; i++) {
        const struct layer *l = s->layers + i;
        const struct matrix *qkv[] = {&l->query, &l->key, &l->value}, *gate_up[] = {&l->gate, &l->up};
        const struct matrix *output = &l->output, *down = &l->down;
        norm(e, l->attention_norm, is_quantised(&l->query) | is_quantised(&l->key) | is_quantised(&l->value));
        multiply(e, qkv, 3, &e->narrow, e->qkv, heads, 0);
        remember(e, i);
        attend(e, i, thread);
        if (is_quantised(output)) quantise(e, &e->heads);
        multiply(e, &output, 1, &e->heads, e->hidden, s->hidden, 1);
        norm(e, l->mlp_norm, is_quantised(&l->gate) | is_quantised(&l->up));
        multiply(e, gate_up, 2, &e->narrow, e->gate_up, 2 * s->intermediate, 0);
        activate(e, is_quantised(down));
        multiply(e, &down, 1, &e->wide, e->hidden, s->hidden, 1);
    }
    leave(e);
}

/* --- workspace ---------------------------------------------------------------------------------------------------- */

static void *carve(char **at, size_t bytes)
{
    char *here = *at;
    *at += (bytes + 63) / 64 * 64;
    return here;
}

static struct activations carve_activations(char **at, int64_t rows, int64_t columns)
{
    const size_t padded = (size_t)((rows + 3) / 4 * 4), blocks = (size_t)(columns / 32);
    struct activations a = {.rows = rows, .columns = columns};
    a.x = carve(at, (size_t)(rows * columns) * sizeof(float));
    a.q = carve(at, (size_t)(rows * columns));
    a.scale = carve(at, padded * blocks * sizeof(float));
    a.sum = carve(at, padded * blocks * sizeof(float));
    return a;
}

/* Lays the buffers out from `memory`, which may be NULL to learn the size. */
static size_t lay_out(struct engine *e, int64_t sampled, char *memory)
{
    const struct stage *s = e->stage;
    const int64_t heads = (int64_t)s->heads * s->head_dim, kv = (int64_t)s->kv_heads * s->head_dim, n = e->rows;
    char *at = memory;
    e->row = carve(&at, (size_t)n * sizeof *e->row);
    e->first_row = carve(&at, (size_t)e->num_steps * sizeof *e->first_row);
    e->hidden = carve(&at, (size_t)(n * s->hidden) * sizeof(float));
    e->qkv = carve(&at, (size_t)(n * (heads + 2 * kv)) * sizeof(float));
    e->gate_up = carve(&at, (size_t)(n * 2 * s->intermediate) * sizeof(float));
    e->turns = carve(&at, (size_t)(n * s->head_dim) * sizeof(float));
    e->scores = carve(&at, (size_t)(e->threads * (e->longest + 8)) * sizeof(float));
    e->narrow = carve_activations(&at, n, s->hidden);
    e->wide = carve_activations(&at, n, s->intermediate);
    e->heads = carve_activations(&at, n, heads);
    e->sampled = carve_activations(&at, sampled, s->hidden);
    return (size_t)(at - memory);
}

static int prepare(struct engine *e, const struct stage *stage, const struct step *steps, int64_t num_steps,
                   float *logits)
{
    int64_t sampled = 0;
    e->stage = stage, e->steps = steps, e->num_steps = num_steps, e->logits = logits;
    e->rows = e->longest = 0;
    for (int64_t i = 0; i < num_steps; i++) {
        const int64_t end = steps[i].position + steps[i].num_tokens;
        e->rows += steps[i].num_tokens;
        sampled += stage->head.data && steps[i].sample;
        e->longest = end > e->longest ? end : e->longest;
    }
    const size_t needed = lay_out(e, sampled, NULL);
    if (needed > e->memory_bytes) {
        free(e->memory);
        e->memory = aligned_alloc(64, needed);
        e->memory_bytes = e->memory ? needed : 0;
        if (!e->memory) return -1;
    }
    lay_out(e, sampled, e->memory);
    int64_t m = 0;
    for (int64_t i = 0; i < num_steps; i++) {
        e->first_row[i] = m;
        for (int64_t t = 0; t < steps[i].num_tokens; t++)
            e->row[m++] = (struct row){steps + i, steps[i].position + t};
    }
    atomic_store(&e->next, 0);
    return 0;
}

/* --- the library's interface -------------------------------------------------------------------------------------- */

struct helper {
    struct engine *engine;
    int thread;
};

static void *help(void *argument)
{
    const struct helper helper = *(struct helper *)argument;
    struct engine *e = helper.engine;
    free(argument);
    for (uint64_t seen = 0;;) {
        pthread_mutex_lock(&e->lock);
        while (e->run == seen && !e->stopping) pthread_cond_wait(&e->started, &e->lock);
        seen = e->run;
        const int stopping = e->stopping;
        pthread_mutex_unlock(&e->lock);
        if (stopping) return NULL;
        walk(e, helper.thread);
        meet(e); /* the run's owner returns after everybody has let go of it */
    }
}

int native_version(void) { return NATIVE_VERSION; }

int native_supports(int isa)
{
#if defined(__x86_64__)
    if (isa == AVX512 && !(__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vnni")))
        return 0;
    if (isa == AVX2 || isa == AVX512)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
    return isa == SCALAR;
}

void native_close(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->stopping = 1;
    pthread_cond_broadcast(&e->started);
    pthread_mutex_unlock(&e->lock);
    for (int i = 1; i < e->threads; i++) pthread_join(e->helpers[i], NULL);
    pthread_cond_destroy(&e->started);
    pthread_mutex_destroy(&e->lock);
    free(e->memory);
    free(e);
}

/* An engine for one caller at a time; NULL if the machine gives no threads or memory. */
struct engine *native_open(int isa, int threads)
{
    if (!native_supports(isa) || threads < 1) return NULL;
    struct engine *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->kernels = &native_scalar;
#if defined(__x86_64__)
    if (isa == AVX2) e->kernels = &native_avx2;
    if (isa == AVX512) e->kernels = &native_avx512;
#endif
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->started, NULL);
    const int wanted = threads < MAX_THREADS ? threads : MAX_THREADS;
    for (e->threads = 1; e->threads < wanted; e->threads++) {
        struct helper *helper = malloc(sizeof *helper);
        if (helper) *helper = (struct helper){e, e->threads};
        if (!helper || pthread_create(&e->helpers[e->threads], NULL, help, helper)) {
            free(helper);
            native_close(e);
            return NULL;
        }
    }
    return e;
}

/* Compute the steps; logits is [steps that sample, vocab], in order, on a last stage.
 * 0, or -1 if there is no memory for them: then nothing has changed. */
int native_run(struct engine *e, const struct stage *stage, const struct step *steps, int64_t num_steps, float *logits)
{
    if (prepare(e, stage, steps, num_steps, logits)) return -1;
    if (e->threads > 1) {
        pthread_mutex_lock(&e->lock);
        e->run++;
        pthread_cond_broadcast(&e->started);
        pthread_mutex_unlock(&e->lock);
    }
    walk(e, 0);
    meet(e);
    return 0;
}

/* For tests: one row of a matrix as floats, and a product with activations [rows, columns] into out [rows, w->rows]. */
void native_dequantise(struct engine *e, const struct matrix *w, int64_t row, float *out)
{
    e->kernels->dequantise(w, row, out);
}

int native_multiply(struct engine *e, const struct matrix *w, float *x, int64_t rows, float *out)
{
    char *at = NULL;
    carve_activations(&at, rows, w->columns);
    char *memory = aligned_alloc(64, (size_t)at);
    if (!memory) return -1;
    at = memory;
    struct activations a = carve_activations(&at, rows, w->columns);
    a.x = x;
    if (is_quantised(w))
        for (int64_t m = 0; m < rows; m++) e->kernels->quantise(&a, m);
    e->kernels->multiply(w, 0, w->rows, &a, out, w->rows, 0);
    free(memory);
    return 0;
}
