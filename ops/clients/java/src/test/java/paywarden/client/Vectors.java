package paywarden.client;

import java.io.IOException;
import java.net.InetAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;

/** Runs the vectors of all clients: {@code java paywarden.client.Vectors FOLDER}. It ends with 1 if one fails. */
public final class Vectors {
    private Vectors() {}

    /** What a kind of vector does: from what is given to what came of it, as JSON has it. */
    private interface Rule {
        Object apply(Object given) throws Exception;
    }

    private static final Map<String, Rule> RULES = new LinkedHashMap<>();

    static {
        RULES.put("card_numbers", given -> CardNumbers.isCardNumber(text(given, "field"), text(given, "text")));
        RULES.put("routes", given -> Routing.routeOf(hex(text(given, "key_hex")), text(given, "card_id")));
        RULES.put("deadlines", given -> CallPlan.deadlineHeader(((Number) given).doubleValue()));
        RULES.put("hosts", given -> Routing.hostOrder(text(given, "key"), texts(get(given, "urls"))));
        RULES.put("requests", Vectors::request);
        RULES.put("answers", Vectors::answer);
        RULES.put("attempts", Vectors::attempts);
        RULES.put("policies", Vectors::policy);
        RULES.put("stand_ins", Vectors::standIns);
        RULES.put(
                "reconciliation",
                given -> ReconcileQueue.nextDueMs(whole(get(given, "asked")), number(get(given, "since_ms"))));
    }

    public static void main(String[] arguments) throws IOException, Json.NotJson {
        int passed = 0, failed = 0;
        for (Map.Entry<String, Rule> rule : RULES.entrySet()) {
            Path path = Path.of(arguments[0], rule.getKey() + ".json");
            for (Object one : (List<?>) get(Json.parse(Files.readString(path)), "cases")) {
                Object got;
                try {
                    got = rule.getValue().apply(get(one, "in"));
                } catch (Exception error) {
                    got = error.toString();
                }
                if (isSame(got, get(one, "want"))) {
                    passed++;
                } else {
                    failed++;
                    System.out.printf("%s, %s: got %s%n", rule.getKey(), get(one, "name"), got);
                }
            }
        }
        for (Map.Entry<String, Boolean> one : ANSWERS.entrySet()) {
            for (int step = 1; step <= one.getKey().length(); step++) {
                if (isTheSameInPieces(one.getKey(), step, one.getValue())) {
                    passed++;
                } else {
                    failed++;
                    System.out.printf("in pieces of %d: %s%n", step, one.getKey());
                }
            }
        }
        if (leavesFailedAddressesOut()) {
            passed++;
        } else {
            failed++;
            System.out.println("an address that failed is not left out for a second unless all have");
        }
        System.out.printf("%d passed, %d failed%n", passed, failed);
        System.exit(failed == 0 && passed > 0 ? 0 : 1);
    }

    /** Answers with the body "hello", and whether their connection may be used again. */
    private static final Map<String, Boolean> ANSWERS =
            Map.of(
                    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                    true,
                    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
                    true,
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                            + "2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n",
                    true,
                    "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\nhello",
                    false);

    /** Returns whether an answer that arrives in pieces of {@code step} bytes is what it is at once. */
    private static boolean isTheSameInPieces(String raw, int step, boolean keeps) throws IOException {
        byte[] bytes = raw.getBytes(StandardCharsets.ISO_8859_1);
        AnswerReader reader = new AnswerReader();
        boolean isWhole = false;
        for (int begin = 0; begin < bytes.length; begin += step) {
            byte[] piece = Arrays.copyOfRange(bytes, begin, Math.min(begin + step, bytes.length));
            isWhole = reader.feed(piece, piece.length);
        }
        String body = new String(reader.body, StandardCharsets.ISO_8859_1);
        return isWhole && body.equals("hello") && reader.keeps == keeps && reader.status == 200;
    }

    private static boolean leavesFailedAddressesOut() throws IOException {
        InetAddress one = InetAddress.getByName("127.0.0.1"), other = InetAddress.getByName("127.0.0.2");
        HostConnections.Addresses addresses = new HostConnections.Addresses();
        addresses.set(List.of(one, other));
        long second = CallPlan.AVOID_NS;
        boolean isRight = taken(addresses, 0).equals(Set.of(one, other));
        addresses.failed(one, 10 * second);
        isRight &= taken(addresses, 10 * second + second / 2).equals(Set.of(other));
        addresses.failed(other, 10 * second + second / 2);
        isRight &= taken(addresses, 10 * second + second * 6 / 10).equals(Set.of(one, other));
        isRight &= taken(addresses, 11 * second).equals(Set.of(one));
        return isRight && taken(addresses, 12 * second).equals(Set.of(one, other));
    }

    private static Set<InetAddress> taken(HostConnections.Addresses addresses, long nowNs) {
        Set<InetAddress> taken = new HashSet<>();
        for (int count = 0; count < 4; count++) {
            taken.add(addresses.take(nowNs));
        }
        return taken;
    }

    // Rules

    private static Object request(Object given) throws Json.NotJson {
        Payment payment = paymentOf(get(given, "payment"));
        if (get(given, "fields") instanceof Map<?, ?> fields) {
            for (Map.Entry<?, ?> field : fields.entrySet()) {
                payment = payment.field((String) field.getKey(), field.getValue());
            }
        }
        byte[] body;
        try {
            body = payment.body();
        } catch (WrongRequest error) {
            return error.code.equals("not_sent") ? map("wrong_field", error.field) : error.code;
        }
        Object key = get(given, "route_key_hex"), left = get(given, "left_ms");
        String route = key == null ? null : Routing.routeOf(hex((String) key), payment.cardId());
        int deadlineMs = CallPlan.deadlineHeader(left == null ? 40 : number(left));
        List<String> headers =
                CallPlan.headersOf(deadlineMs, text(given, "token"), route, text(given, "traceparent"));
        Map<String, Object> named = new HashMap<>();
        for (int place = 0; place < headers.size(); place += 2) {
            named.put(headers.get(place), headers.get(place + 1));
        }
        return map("body", Json.parse(body), "headers", named);
    }

    private static Object answer(Object given) {
        byte[] body = text(given, "body").getBytes(StandardCharsets.UTF_8);
        Answers.End end = Answers.read(text(given, "payment_id"), whole(get(given, "status")), body);
        if (end.refusal() != null) {
            WrongRequest error = end.refusal();
            return map("wrong_request", map("code", error.code, "field", error.field, "message", error.text));
        }
        return end.decision() == null ? map("cause", end.cause()) : map("decision", jsonOf(end.decision()));
    }

    private static Object attempts(Object given) {
        List<Integer> order = wholes(get(given, "order")), avoided = wholes(get(given, "avoided"));
        Object pinned = get(given, "pinned");
        CallPlan plan = new CallPlan(order, avoided, pinned == null ? CallPlan.NO_HOST : whole(pinned));
        List<Object> attempts = new ArrayList<>(List.of(map("host", plan.host, "pause_ms", 0)));
        Map<String, Object> got = new HashMap<>();
        for (Object event : (List<?>) get(given, "events")) {
            Object met = get(event, "met");
            if (!met.equals(CallPlan.REFUSED)) {
                plan.sent();
            }
            double pauseMs = plan.retryPauseMs(met.toString(), number(get(event, "left_ms")));
            if (pauseMs != CallPlan.NO_RETRY) {
                attempts.add(map("host", plan.host, "pause_ms", pauseMs));
            } else if (met instanceof String word) {
                got.put("cause", CallPlan.causeOf(word));
            } else {
                byte[] body = "{\"payment_id\": \"p\", \"action\": \"approve\"}".getBytes(StandardCharsets.UTF_8);
                Answers.End end = Answers.read("p", whole(met), body);
                if (end.decision() != null) {
                    got.put("answered", true);
                } else if (end.refusal() != null) {
                    got.put("refused", true);
                } else {
                    got.put("cause", end.cause());
                }
            }
        }
        got.put("attempts", attempts);
        got.put("sent_to", plan.sentTo == CallPlan.NO_HOST ? null : plan.sentTo);
        return got;
    }

    private static Object policy(Object given) {
        try {
            StandInPolicy.of(given);
        } catch (WrongSettings error) {
            return map("wrong_at", error.where);
        }
        return map("wrong_at", null);
    }

    private static Object standIns(Object given) {
        Object cardsMax = get(given, "cards_max");
        StandIn decides = new StandIn(StandInPolicy.of(get(given, "policy")), cardsMax == null ? 100_000 : whole(cardsMax));
        List<Object> got = new ArrayList<>();
        for (Object step : (List<?>) get(given, "steps")) {
            Payment payment = paymentOf(get(step, "payment"));
            Decision decision = decides.decide(payment, text(step, "cause"), number(get(step, "now_ms")));
            boolean isStandIn = decision.standIn() && decision.score() == null;
            got.add(
                    isStandIn && decision.flags().equals(List.of("stand_in"))
                            ? map("action", decision.action(), "reasons", decision.reasons())
                            : "no stand-in");
        }
        return got;
    }

    // JSON

    /** Returns a decision as the vectors have it. */
    static Map<String, Object> jsonOf(Decision decision) {
        return map(
                "payment_id", decision.paymentId(),
                "action", decision.action(),
                "decision_id", decision.decisionId(),
                "score", decision.score(),
                "reasons", decision.reasons(),
                "model_version", decision.modelVersion(),
                "flags", decision.flags(),
                "profile_age_ms", decision.profileAgeMs(),
                "stand_in", decision.standIn());
    }

    /** Returns the payment of an object with the endpoint's names. */
    static Payment paymentOf(Object given) {
        Map<String, Object> values = new LinkedHashMap<>();
        ((Map<?, ?>) given)
                .forEach(
                        (key, value) -> {
                            String name = (String) key;
                            if (Payment.NAMES.contains(name)) {
                                values.put(name, value);
                            } else if (!name.equals("fields")) {
                                throw new IllegalArgumentException("no field of a payment: " + name);
                            }
                        });
        Payment payment = new Payment(values, Map.of());
        if (get(given, "fields") instanceof Map<?, ?> fields) {
            for (Map.Entry<?, ?> field : fields.entrySet()) {
                payment = payment.field((String) field.getKey(), field.getValue());
            }
        }
        return payment;
    }

    static Object get(Object object, String name) {
        return ((Map<?, ?>) object).get(name);
    }

    static String text(Object object, String name) {
        return (String) get(object, name);
    }

    static byte[] hex(String digits) {
        return HexFormat.of().parseHex(digits);
    }

    static Map<String, Object> map(Object... namesAndValues) {
        Map<String, Object> made = new LinkedHashMap<>();
        for (int place = 0; place < namesAndValues.length; place += 2) {
            made.put((String) namesAndValues[place], namesAndValues[place + 1]);
        }
        return made;
    }

    private static int whole(Object value) {
        return ((Number) value).intValue();
    }

    private static double number(Object value) {
        return ((Number) value).doubleValue();
    }

    private static List<String> texts(Object list) {
        return ((List<?>) list).stream().map(String.class::cast).toList();
    }

    private static List<Integer> wholes(Object list) {
        return ((List<?>) list).stream().map(Vectors::whole).toList();
    }

    private static boolean isSame(Object got, Object want) {
        if (got instanceof Number one && want instanceof Number other) {
            return one.doubleValue() == other.doubleValue();
        }
        if (got instanceof List<?> ones && want instanceof List<?> others) {
            boolean isSame = ones.size() == others.size();
            for (int place = 0; isSame && place < ones.size(); place++) {
                isSame = isSame(ones.get(place), others.get(place));
            }
            return isSame;
        }
        if (got instanceof Map<?, ?> ones && want instanceof Map<?, ?> others) {
            return ones.keySet().equals(others.keySet())
                    && ones.keySet().stream().allMatch(key -> isSame(ones.get(key), others.get(key)));
        }
        return Objects.equals(got, want);
    }
}
