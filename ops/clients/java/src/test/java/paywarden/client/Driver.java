package paywarden.client;

import static paywarden.client.Vectors.get;
import static paywarden.client.Vectors.hex;
import static paywarden.client.Vectors.jsonOf;
import static paywarden.client.Vectors.map;
import static paywarden.client.Vectors.paymentOf;
import static paywarden.client.Vectors.text;

import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Function;

/**
 * The driver of the Java client, which tests and benchmarks talk to. ops/clients/SPECIFICATION.md says what it reads and
 * prints.
 */
public final class Driver {
    private static final double LATE_NS = 5e6;
    /** Calls at a time. A call that finds no thread begins late, and is counted so. */
    private static final int THREADS = 64;

    private static final PrintStream OUT = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    private static volatile boolean isLoading;

    private Driver() {}

    private record Own(String paymentId, String action) {}

    public static void main(String[] arguments) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PaywardenClient client = null;
        ClientSettings settings = null;
        for (String text = in.readLine(); text != null; text = in.readLine()) {
            Object line = Json.parse(text);
            if (get(line, "settings") instanceof Map<?, ?> given) {
                if (client != null) {
                    client.close();
                    client = null;
                }
                try {
                    settings = settingsOf(given);
                    client = new PaywardenClient(settings, hooksOf(given.get("events")));
                    say("ready", "java");
                } catch (WrongSettings error) {
                    say("wrong_settings", error.where);
                }
            } else if (get(line, "score") != null) {
                score(client, settings, line);
            } else if (get(line, "shadow") != null) {
                Payment payment = paymentOf(get(line, "shadow"));
                say("own", client.shadow(payment, new Own(payment.paymentId(), text(line, "own"))).action());
            } else if (get(line, "load") != null) {
                PaywardenClient asked = client;
                say("load", load(get(line, "load"), settings, asked::score));
            } else if (get(line, "bare") != null) {
                say("load", load(get(line, "bare"), settings, bareCall(settings)));
            } else if (get(line, "close") != null) {
                if (client != null) {
                    client.close();
                }
                say("closed", true);
                return;
            }
        }
    }

    private static void say(Object... namesAndValues) {
        StringBuilder out = new StringBuilder();
        Json.write(out, map(namesAndValues));
        synchronized (OUT) {
            OUT.print(out.append('\n'));
            OUT.flush();
        }
    }

    private static void score(PaywardenClient client, ClientSettings settings, Object line) {
        Object deadlineMs = get(line, "deadline_ms");
        try {
            Decision decision =
                    client.score(
                            paymentOf(get(line, "score")),
                            deadlineMs == null ? settings.deadlineMs : ((Number) deadlineMs).doubleValue(),
                            text(line, "traceparent"));
            say("decision", jsonOf(decision));
        } catch (WrongRequest error) {
            say("wrong_request", map("code", error.code, "field", error.field, "message", error.text));
        }
    }

    private static ClientSettings settingsOf(Map<?, ?> given) {
        Object urls = given.get("urls");
        String[] listed =
                urls instanceof String one
                        ? new String[] {one}
                        : ((List<?>) urls).stream().map(String.class::cast).toArray(String[]::new);
        ClientSettings settings = new ClientSettings(listed);
        given.forEach(
                (name, value) -> {
                    switch ((String) name) {
                        case "urls", "events":
                            break;
                        case "deadline_ms":
                            settings.deadlineMs(((Number) value).doubleValue());
                            break;
                        case "token":
                            settings.token((String) value);
                            break;
                        case "route_key_hex":
                            settings.routeKey(hex((String) value));
                            break;
                        case "policy":
                            settings.policy(StandInPolicy.of(value));
                            break;
                        case "connections_max":
                            settings.connectionsMax(((Number) value).intValue());
                            break;
                        case "idle_ms":
                            settings.idleMs(((Number) value).doubleValue());
                            break;
                        case "connect_timeout_ms":
                            settings.connectTimeoutMs(((Number) value).doubleValue());
                            break;
                        case "resolve_s":
                            settings.resolveS(((Number) value).doubleValue());
                            break;
                        case "queue_max":
                            settings.queueMax(((Number) value).intValue());
                            break;
                        case "shadow_max":
                            settings.shadowMax(((Number) value).intValue());
                            break;
                        case "cards_max":
                            settings.cardsMax(((Number) value).intValue());
                            break;
                        case "ca":
                            settings.ca(Path.of((String) value));
                            break;
                        case "certificate":
                            settings.certificate(Path.of((String) value), settings.key);
                            break;
                        case "key":
                            settings.certificate(settings.certificate, Path.of((String) value));
                            break;
                        default:
                            throw new IllegalArgumentException("no setting: " + name);
                    }
                });
        return settings;
    }

    private static Hooks hooksOf(Object events) {
        boolean tellsCalls = events instanceof List<?> list && list.contains("call");
        return new Hooks() {
            @Override
            public void onCall(String operation, String outcome, double seconds, int attempts) {
                if (tellsCalls) {
                    event("call", "operation", operation, "outcome", outcome, "attempts", attempts);
                }
            }

            @Override
            public void onReconciled(Decision standIn, Decision decision, String end) {
                Object action = decision == null ? null : decision.action();
                event("reconciled", "payment_id", standIn.paymentId(), "end", end, "action", action);
            }

            @Override
            public void onShadow(Object own, Decision decision, String cause) {
                Object action = decision == null ? null : decision.action();
                Own mine = (Own) own;
                event(
                        "shadow",
                        "payment_id", mine.paymentId(), "own", mine.action(), "action", action, "cause", cause);
            }

            private void event(String name, Object... namesAndValues) {
                if (!isLoading) {
                    Object[] whole = Arrays.copyOf(namesAndValues, namesAndValues.length + 2);
                    whole[namesAndValues.length] = "event";
                    whole[namesAndValues.length + 1] = name;
                    say(whole);
                }
            }
        };
    }

    // Loads

    /** Makes the calls of a load. {@code call} returns null, or raises, for a failure. */
    private static Object load(Object given, ClientSettings settings, Function<Payment, Decision> call)
            throws InterruptedException {
        double rate = ((Number) get(given, "rate")).doubleValue();
        int cards = ((Number) get(given, "cards")).intValue();
        int count = (int) (rate * ((Number) get(given, "seconds")).doubleValue());
        double[] tookMs = new double[count];
        Map<String, Object> standIns = new TreeMap<>();
        int[] counts = new int[3];
        ExecutorService threads = Executors.newFixedThreadPool(THREADS);
        isLoading = true;
        OperatingSystemMXBean system = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        long cpuNs = system.getProcessCpuTime(), beginNs = System.nanoTime();
        for (int number = 0; number < count; number++) {
            int place = number;
            long dueNs = beginNs + (long) (number / rate * 1e9);
            for (long leftNs = dueNs - System.nanoTime(); leftNs > 0; leftNs = dueNs - System.nanoTime()) {
                LockSupport.parkNanos(leftNs);
            }
            threads.execute(
                    () -> {
                        Payment payment = paymentOfLoad(text(given, "id"), cards, place);
                        long beganNs = System.nanoTime();
                        Decision decision = null;
                        try {
                            decision = call.apply(payment);
                        } catch (RuntimeException error) {
                            // A failure is what is counted.
                        }
                        tookMs[place] = (System.nanoTime() - beganNs) / 1e6;
                        synchronized (counts) {
                            counts[0] += beganNs - dueNs > LATE_NS ? 1 : 0;
                            if (decision == null) {
                                counts[1]++;
                            } else if (decision.standIn()) {
                                String cause = decision.reasons().get(0).substring("stand_in:".length());
                                standIns.merge(cause, 1, (one, other) -> (Integer) one + (Integer) other);
                            } else {
                                counts[2]++;
                            }
                        }
                    });
        }
        threads.shutdown();
        threads.awaitTermination(1, TimeUnit.HOURS);
        double usedUs = (system.getProcessCpuTime() - cpuNs) / 1e3;
        isLoading = false;
        Arrays.sort(tookMs);
        Function<Double, Double> at =
                share -> count == 0 ? 0.0 : tookMs[Math.min((int) (share * count), count - 1)];
        return map(
                "calls", count,
                "answered", counts[2],
                "stand_ins", standIns,
                "failed", counts[1],
                "cpu_us", usedUs / Math.max(count, 1),
                "late_calls", counts[0],
                "p50_ms", at.apply(0.5),
                "p99_ms", at.apply(0.99),
                "over_p99_9_ms", at.apply(0.999) - settings.deadlineMs,
                "over_max_ms", at.apply(1.0) - settings.deadlineMs);
    }

    private static Payment paymentOfLoad(String id, int cards, int number) {
        return Payment.of(
                id + "-" + number,
                System.currentTimeMillis(),
                String.format("card-%06d", number % cards),
                String.format("merchant-%04d", number % 100),
                1000 + number % 5000,
                "EUR");
    }

    /** Returns a call through java.net.http, with its connections and no rules. */
    private static Function<Payment, Decision> bareCall(ClientSettings settings) {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        URI uri = URI.create(settings.urls.get(0).replaceAll("/+$", "") + "/v1/score");
        return payment -> {
            HttpRequest.Builder request = HttpRequest.newBuilder(uri).header("content-type", "application/json");
            if (settings.token != null) {
                request.header("authorization", "Bearer " + settings.token.get());
            }
            try {
                HttpResponse<byte[]> answer =
                        client.send(
                                request.POST(HttpRequest.BodyPublishers.ofByteArray(payment.body())).build(),
                                HttpResponse.BodyHandlers.ofByteArray());
                return Answers.read(payment.paymentId(), answer.statusCode(), answer.body()).decision();
            } catch (IOException error) {
                return null;
            } catch (InterruptedException error) {
                Thread.currentThread().interrupt();
                return null;
            }
        };
    }
}
